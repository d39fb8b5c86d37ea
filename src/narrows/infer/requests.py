"""What is asked of the scheduler, and the answer, written by one thread and read by another.

answer = scheduler.submit(Request(...))
for piece in answer: ...        or, in an event loop:  async for pieces in answer.batches(): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import NamedTuple, final

from narrows.infer.generate import Finish
from narrows.infer.grammar import Guide
from narrows.infer.sampling import Sampling
from narrows.infer.tally import Outcome
from narrows.spec.errors import BadInput, NarrowsError, RunFailed
from narrows.spec.record import Record


class Full(RunFailed):
    """As many requests wait as may; come again later."""


class Closed(RunFailed):
    """No more requests are taken."""


class Request(Record):
    """`count` texts that go on from the same prompt; the seed of each is one above the last's.

    With `logprobs` each token comes with its log-probability and the so many likeliest. Each text
    begins where the guide is, and keeps to its grammar; an adapter is asked for by its name.
    """

    prompt: tuple[int, ...]
    tokens_max: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    count: int = 1
    logprobs: int | None = None
    guide: Guide | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise BadInput("the prompt has no tokens", hint="begin with some text")
        for name, least in (("tokens_max", 1), ("count", 1), ("logprobs", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadInput(f"{name} is {value}", hint=f"ask for at least {least}")


class Likely(NamedTuple):
    """A token and its log-probability by the model's own odds, before temperature and penalties."""

    token: int
    logprob: float


class Chosen(NamedTuple):
    """A token that was written, and the likeliest in its place."""

    itself: Likely
    likeliest: tuple[Likely, ...]


class Piece(NamedTuple):
    """More of one of an answer's texts: what may be shown now, of so many tokens; `finish` says of
    the last why it ended.
    """

    choice: int
    text: str
    tokens: int
    chosen: tuple[Chosen, ...] = ()
    finish: Finish | None = None


@final
class Answer:
    """The pieces of a request's texts in the order they are written; iterate once.

    Iterating raises the error that the request came to. `reused` counts tokens of the prompt that
    were not computed again.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.reused = 0
        self._came: deque[Piece | NarrowsError] = deque()
        self._reader: threading.Event | _Waiting | None = None
        self._left = request.count
        self._ended = False
        self.outcome: Outcome = "finished"

    @property
    def over(self) -> bool:
        """Whether nothing more is to be written: it is whole, failed, or nobody wants it."""
        return self._ended

    def cancel(self) -> None:
        """Nobody wants the rest: the worker drops it before its next step."""
        if not self._ended:
            self.outcome = "cancelled"
        self._ended = True
        ring([self])

    def put(self, piece: Piece) -> None:
        """The worker's: hand over more; who reads it notices when `ring` is called."""
        self._left -= piece.finish is not None
        self._came.append(piece)
        self._ended = self._ended or self._left == 0

    def fail(self, error: NarrowsError) -> None:
        """The worker's: there will be no more, and why."""
        if not self._ended:
            self._came.append(error)
            self.outcome = "failed"
            self._ended = True
        ring([self])

    def __iter__(self) -> Iterator[Piece]:
        arrived = self._reader = threading.Event()
        while True:
            arrived.clear()
            ended = self._ended
            pieces, error = self._taken()
            yield from pieces
            if error:
                raise error
            if ended:
                return
            arrived.wait()

    async def batches(
        self, at_once: Callable[[Piece], bool] = lambda piece: False
    ) -> AsyncIterator[list[Piece]]:
        """What came since the last. A piece that `at_once` takes is in none: the event loop hands
        it over as it comes, without a turn of the task that iterates.
        """
        arrived, waits = asyncio.Event(), False

        def wake() -> None:
            # What goes wrong here goes wrong in the task too, which tells it.
            with contextlib.suppress(Exception):
                # While the task has pieces in hand, later ones wait behind them.
                while waits and self._came and self._taken_by(at_once):
                    self._came.popleft()
            if self._came or self._ended:
                arrived.set()

        self._reader = _Waiting(asyncio.get_running_loop(), wake)
        while True:
            arrived.clear()
            ended = self._ended
            pieces, error = self._taken()
            if pieces:
                yield pieces
            if error:
                raise error
            if ended:
                return
            waits = True
            await arrived.wait()
            waits = False

    def _taken_by(self, at_once: Callable[[Piece], bool]) -> bool:
        item = self._came[0]
        return isinstance(item, Piece) and at_once(item)

    def _taken(self) -> tuple[list[Piece], NarrowsError | None]:
        """What came, and the error that it ended with."""
        pieces = list[Piece]()
        while self._came:
            item = self._came.popleft()
            if isinstance(item, NarrowsError):
                return pieces, item
            pieces.append(item)
        return pieces, None


def ring(answers: Iterable[Answer]) -> None:
    """Wake who reads these; an event loop is called once for all of its own."""
    loops: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
    for answer in answers:
        reader = answer._reader
        if isinstance(reader, threading.Event):
            reader.set()
        elif reader is not None:
            loops.setdefault(reader.loop, []).append(reader.wake)
    for loop, wakes in loops.items():
        # The loop may be gone before the worker notices that nobody listens.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_called, wakes)


def _called(wakes: list[Callable[[], None]]) -> None:
    for wake in wakes:
        wake()


class _Waiting(NamedTuple):
    """Who reads in an event loop."""

    loop: asyncio.AbstractEventLoop
    wake: Callable[[], None]
