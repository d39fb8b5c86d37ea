"""Many requests through one core: each step reads some of the prompts that wait to be read, and
writes a token of every text.

    Scheduler(core, tokenizer).submit(request) → Answer
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import final

from narrows.data.tokenizers import Tokenizer
from narrows.infer.core import Core, Read
from narrows.infer.draft import Draft
from narrows.infer.generate import TooLong
from narrows.infer.requests import Answer, Closed, Full, Request, ring
from narrows.infer.slots import Slots
from narrows.infer.tally import Tally
from narrows.infer.writing import Writing
from narrows.kernels.arrays import Floats
from narrows.spec.errors import BadInput, NarrowsError, RunFailed

CHUNK = 256
"""Tokens of prompts that are read in one step while no text is written."""
BESIDE = 2
"""Of those, one in so many while the next tokens of other texts wait for the step."""
GUESSING = 4
"""Texts that are written while guesses pay: a row costs little only beside few others."""

Talk = Callable[[str], None]


@final
class Scheduler:
    """One thread owns the core; texts wait for a free slot in the order they came.

    What a request is answered does not depend on what else is asked: its seed, and its own
    positions alone decide. Where the thread dies, the texts in the making fail, those that wait do
    not, and another thread goes on.
    """

    def __init__(
        self, core: Core, tokenizer: Tokenizer, *, queue: int = 64, chunk: int = CHUNK,
        speculate: int | Draft = 0, talk: Talk = lambda text: None,
    ) -> None:  # fmt: skip
        """`speculate`: tokens that are guessed at most for each of few texts and read along by what
        was said before, or who guesses them; of cores that are not `alike`, whose texts would
        change by it, none.
        """
        self.core, self.queue = core, queue
        guesser = speculate if core.alike else 0
        self._draft = guesser if isinstance(guesser, Draft) else None
        self._looked_up = min(guesser, chunk // GUESSING) if isinstance(guesser, int) else 0
        self.tally = Tally()
        self._tokenizer, self._talk = tokenizer, talk
        self._slots = Slots(core, chunk)
        self._changed = threading.Condition()
        self._open: dict[Answer, float] = {}
        self._waiting: deque[Writing] = deque()
        self._reading: deque[Writing] = deque()
        self._writing: list[Writing] = []
        self._closing = False
        self._thread = self._started()

    @property
    def running(self) -> int:
        """Texts that are read or written now."""
        return len(self._reading) + len(self._writing)

    @property
    def waiting(self) -> int:
        """Texts that have no slot yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether requests are taken and computed."""
        return self._thread.is_alive() and not self._closing

    def submit(self, request: Request) -> Answer:
        """The answer, to be written as soon as may be.

        Raises BadInput where there is no such adapter, TooLong where it is longer than the context,
        Full where as many wait as may, Closed once the scheduler is.
        """
        if request.adapter not in self.core.adapters:
            there = ", ".join(sorted(each for each in self.core.adapters if each)) or "none"
            raise BadInput(f"there is no adapter {request.adapter!r}", hint=f"there are: {there}")
        self._refuse_long(request)
        answer = Answer(request)
        first = Writing(answer, 0, self._tokenizer, self._looked_up)
        with self._changed:
            if self._closing:
                raise Closed("the server is shutting down", hint="ask another, or later")
            if sum(not each.over for each in self._open) >= self.core.slots + self.queue:
                self.tally.requests["refused"] += 1
                what = f"{self.core.slots} requests are being answered and {self.queue} wait"
                raise Full(what, hint="ask again in a moment")
            self._open[answer] = time.monotonic()
            self._waiting.append(first)
            self._changed.notify_all()
        return answer

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take no more requests; cancel those that are not answered within `drain_s`."""
        ends = time.monotonic() + drain_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, max(0.0, ends - time.monotonic()))
            left = list(self._open)
        for answer in left:
            answer.fail(Closed("the server is shutting down", hint="ask again later"))
        while self._thread.is_alive():
            self._thread.join(1.0)

    def _refuse_long(self, request: Request) -> None:
        prompt, context = len(request.prompt), self.core.context
        if prompt >= context:
            raise TooLong(
                f"the prompt is {prompt} tokens long, the context {context}, its answer included",
                hint=f"shorten the prompt to {context - 1} tokens or less",
            )
        if prompt + request.tokens_max > context:
            raise TooLong(
                f"{prompt} tokens of prompt and {request.tokens_max} of answer are more than the "
                f"context of {context}",
                hint=f"ask for at most {context - prompt} tokens, or shorten the prompt",
            )

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        try:
            while self._has_work():
                self._step()
        except BaseException as error:  # whatever it is, nobody must wait for ever
            self._restart(error)

    def _has_work(self) -> bool:
        """Wait for some; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._closing)
            return bool(self._open)

    def _step(self) -> None:
        self._settle()
        self._admit()
        texts = [each for each in self._writing if not each.answer.over]
        guesses = self._guesses(texts)
        chunks = self._chunks(waited_for=bool(texts))
        written = [
            Read(each.slot, (each.last, *guess), self.core.length(each.slot), 1 + len(guess))
            for each, guess in zip(texts, guesses, strict=True)
        ]
        if written or chunks:
            logits_WV = self.core.step([*written, *chunks])
            rows = iter(logits_WV)
            self._go_on(texts, guesses, rows)
            self._read(chunks, rows)
        self._settle()

    def _guesses(self, texts: list[Writing]) -> list[tuple[int, ...]]:
        """What each may go on with."""
        if self._reading or len(texts) > GUESSING:
            return [()] * len(texts)
        return self._draft.guesses(texts) if self._draft else [each.guess() for each in texts]

    def _settle(self) -> None:
        """Give back the slots of texts that are over or that nobody wants, and close the books."""
        with self._changed:
            over = {answer for answer in self._open if answer.over}
            for writing in (*self._reading, *self._writing):
                if writing.answer in over:
                    self._slots.give(writing.slot, writing.written)
            self._writing = [each for each in self._writing if each.answer not in over]
            self._reading = deque(each for each in self._reading if each.answer not in over)
            self._waiting = deque(each for each in self._waiting if each.answer not in over)
            for answer in over:
                self.tally.requests[answer.outcome] += 1
                del self._open[answer]
            self._changed.notify_all()

    def _admit(self) -> None:
        while self._waiting and self._slots.free:
            with self._changed:
                writing = self._waiting.popleft()
            self._reading.append(writing)
            request = writing.answer.request
            place = self._slots.take(request.prompt, request.adapter)
            writing.slot, writing.read = place.slot, place.held
            self.tally.tokens_reused += place.held
            if writing.choice == 0:
                writing.answer.reused = place.held
            if place.logits_V is not None:
                self._reading.pop()
                self._begin(writing, place.logits_V)

    def _chunks(self, *, waited_for: bool) -> list[Read]:
        """Of prompts in the order they came, together no more than a chunk, or than a part of one
        where texts wait for the step and prompts may be cut anywhere.
        """
        room = self._slots.chunk // (BESIDE if waited_for and self.core.alike else 1)
        found = list[Read]()
        for writing in self._reading:
            prompt = writing.answer.request.prompt
            chunk = self._slots.next(writing.slot, prompt, writing.read, room)
            if chunk is None:
                break
            room -= len(chunk.tokens)
            found.append(chunk)
        return found

    def _read(self, chunks: list[Read], rows: Iterator[Floats]) -> None:
        """These chunks were read; `rows` say what follows those that end their prompts."""
        going_on: list[Writing] = []
        for writing, chunk in zip(list(self._reading), chunks, strict=False):
            # A row alone, since it is kept: the others are not to stay with it.
            logits_V = next(rows).copy() if chunk.wanted else None
            self._slots.keep(chunk, logits_V)
            writing.read += len(chunk.tokens)
            self.tally.tokens_read += len(chunk.tokens)
            self._reading.popleft()
            if logits_V is None:
                going_on.append(writing)
            else:
                self._begin(writing, logits_V)
        self._reading.extendleft(reversed(going_on))

    def _begin(self, writing: Writing, logits_V: Floats) -> None:
        """The first token; the request's other texts, whose prompt is read now, come next."""
        answer = writing.answer
        if writing.choice == 0:
            self.tally.first.count(time.monotonic() - self._open[answer])
            rest = range(1, answer.request.count)
            others = [Writing(answer, choice, self._tokenizer, self._looked_up) for choice in rest]
            with self._changed:
                self._waiting.extendleft(reversed(others))
        self._writing.append(writing)
        self._go_on([writing], [()], iter([logits_V]))

    def _go_on(
        self, texts: list[Writing], guesses: list[tuple[int, ...]], rows: Iterator[Floats]
    ) -> None:
        """Each chooses from its own of `rows`: one, and one more for each token guessed."""
        for writing, guess in zip(texts, guesses, strict=True):
            before, own = writing.tokens, [next(rows) for _ in range(1 + len(guess))]
            try:
                goes_on = writing.go_on(own, guess)
            except NarrowsError as error:
                writing.answer.fail(error)
                continue
            self._count(writing, writing.tokens - before)
            if not goes_on:
                self._writing.remove(writing)
                self._slots.give(writing.slot, writing.written)
            elif guess:
                known = len(writing.answer.request.prompt) + len(writing.written)
                self.core.cut(writing.slot, known)
                self.tally.tokens_guessed += len(guess)
                self.tally.tokens_guessed_right += writing.tokens - before - 1
        ring({writing.answer for writing in texts})

    def _count(self, writing: Writing, tokens: int) -> None:
        now = time.monotonic()
        self.tally.tokens_written += tokens
        if writing.wrote_s is not None:
            for _ in range(tokens):
                self.tally.each.count((now - writing.wrote_s) / tokens)
        writing.wrote_s = now

    def _restart(self, error: BaseException) -> None:
        """Fail what was in the making, trust no slot, and go on with what waits."""
        self._talk(f"the worker died and is restarted: {type(error).__name__}: {error}")
        with self._changed:
            made = {writing.answer for writing in (*self._reading, *self._writing)}
            lost = self._open.keys() - {writing.answer for writing in self._waiting}
        for answer in made | lost:
            answer.fail(RunFailed("the engine failed while it wrote this", hint="ask again"))
        self._reading.clear()
        self._writing.clear()
        self._slots.forget()
        self._settle()
        self.tally.restarts += 1
        self._thread = self._started()
