"""Texts of one model, one at a time, written with guesses.

guesser = Guesser(writer, context, speculate=8);  guesser.write(prompt, tokens) → GuessedText
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import final

from narrows.infer.engine import Room, scheduler_of
from narrows.infer.generate import Finish, Writer
from narrows.infer.grammar import Guide
from narrows.infer.requests import Request
from narrows.infer.sampling import Sampling
from narrows.infer.scheduler import Scheduler


@final
class Guesser:
    """What one text has read, the next that begins alike does not read again."""

    def __init__(
        self, writer: Writer, context: int, speculate: int, draft: Writer | None = None,
        talk: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        """`context`: of the longest text. At most `speculate` tokens are guessed at once."""
        room = Room(1, 0, min(context, writer.spec.context), speculate, draft)
        self.scheduler = scheduler_of(writer, room, talk)

    def write(
        self, prompt: Sequence[int], tokens: int, *, sampling: Sampling | None = None,
        stop: Sequence[str] = (), guide: Guide | None = None,
    ) -> GuessedText:  # fmt: skip
        """At most `tokens` tokens behind the prompt; raises BadInput as the scheduler does."""
        request = Request(
            prompt=tuple(prompt), tokens_max=tokens, sampling=sampling or Sampling(),
            stop=tuple(stop), guide=guide,
        )  # fmt: skip
        return GuessedText(self.scheduler, request)

    def close(self) -> None:
        """Write no more."""
        self.scheduler.close()


@final
class GuessedText:
    """Text as it is written; iterate once. The same figures as a Generation's, but that each token
    behind the first took their mean: several come at once.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._scheduler, self._began = scheduler, time.perf_counter()
        self._before = scheduler.tally.tokens_guessed, scheduler.tally.tokens_guessed_right
        self._answer = scheduler.submit(request)
        self.prompt, self.tokens = request.prompt, 0
        self.seconds: list[float] = []
        self.finish: Finish = "length"

    def __iter__(self) -> Iterator[str]:
        first_s = None
        try:
            for piece in self._answer:
                self.tokens += piece.tokens
                first_s = first_s or time.perf_counter() - self._began
                self.finish = piece.finish or self.finish
                if piece.text:
                    yield piece.text
        finally:
            # Nobody waits for what whoever reads has left.
            self._answer.cancel()
        rest = self.tokens - 1 + (self.finish == "end")
        more_s = time.perf_counter() - self._began - (first_s or 0.0)
        self.seconds = [first_s or 0.0, *[more_s / max(1, rest)] * rest]

    @property
    def guessed(self) -> str:
        """How many guesses were right, in words."""
        tally = self._scheduler.tally
        guessed, right = tally.tokens_guessed, tally.tokens_guessed_right
        return f"{right - self._before[1]} of {guessed - self._before[0]} guessed tokens were right"

    @property
    def cache_bytes(self) -> int:
        """What keys and values take."""
        return self._scheduler.core.cache_bytes
