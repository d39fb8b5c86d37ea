"""Many requests through one core: each step reads a chunk of one prompt and writes one token of
every text.

    Scheduler(core, tokenizer).submit(request) → Answer
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import final

from torch import Tensor

from narrows.data.tokenizers import Tokenizer
from narrows.infer.core import Core
from narrows.infer.generate import TooLong
from narrows.infer.requests import Answer, Closed, Full, Request
from narrows.infer.slots import Slots
from narrows.infer.tally import Tally
from narrows.infer.writing import Writing
from narrows.spec.errors import NarrowsError, RunFailed

CHUNK = 256
"""Tokens of a prompt that are read before the other texts go on by a token."""

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
        talk: Talk = lambda text: None,
    ) -> None:  # fmt: skip
        self.core, self.queue = core, queue
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

        Raises TooLong where it is longer than the context, Full where as many wait as may, Closed
        once the scheduler is.
        """
        self._refuse_long(request)
        answer = Answer(request)
        first = Writing(answer, 0, self._tokenizer)
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
        if self._reading:
            self._read()
        if self._writing:
            self._write()
        self._settle()

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
            place = self._slots.take(writing.answer.request.prompt)
            writing.slot, writing.read = place.slot, place.held
            self.tally.tokens_reused += place.held
            if writing.choice == 0:
                writing.answer.reused = place.held
            if place.logits_V is not None:
                self._reading.pop()
                self._begin(writing, place.logits_V)

    def _read(self) -> None:
        """One chunk of the prompt that came first."""
        writing = self._reading[0]
        before = writing.read
        prompt = writing.answer.request.prompt
        writing.read, logits_V = self._slots.read(writing.slot, prompt, before)
        self.tally.tokens_read += writing.read - before
        if writing.read == len(prompt):
            self._reading.popleft()
            self._begin(writing, logits_V)

    def _begin(self, writing: Writing, logits_V: Tensor) -> None:
        """The first token; the request's other texts, whose prompt is read now, come next."""
        answer = writing.answer
        if writing.choice == 0:
            self.tally.first.count(time.monotonic() - self._open[answer])
            rest = range(1, answer.request.count)
            others = [Writing(answer, choice, self._tokenizer) for choice in rest]
            with self._changed:
                self._waiting.extendleft(reversed(others))
        self._writing.append(writing)
        self._go_on([writing], [logits_V])

    def _write(self) -> None:
        """A token of every text that is still wanted."""
        texts = [each for each in self._writing if not each.answer.over]
        if not texts:
            return
        logits_MV = self.core.decode(
            [each.slot for each in texts], [each.last for each in texts]
        )  # fmt: skip
        for each in texts:
            each.written.append(each.last)
        self._go_on(texts, list(logits_MV))

    def _go_on(self, texts: list[Writing], logits: list[Tensor]) -> None:
        for writing, logits_V in zip(texts, logits, strict=True):
            try:
                goes_on = writing.go_on(logits_V)
            except NarrowsError as error:
                writing.answer.fail(error)
                continue
            self._count(writing)
            if not goes_on:
                self._writing.remove(writing)
                self._slots.give(writing.slot, writing.written)

    def _count(self, writing: Writing) -> None:
        now = time.monotonic()
        self.tally.tokens_written += 1
        if writing.wrote_s is not None:
            self.tally.each.count(now - writing.wrote_s)
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
