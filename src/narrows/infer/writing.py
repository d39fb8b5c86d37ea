"""One text of an answer in the making: from the logits of its next token to what may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import msgspec
import numpy as np

from narrows.data.tokenizers import Tokenizer
from narrows.infer.generate import Finish
from narrows.infer.grammar import Guide
from narrows.infer.lookup import Lookup
from narrows.infer.requests import Answer, Chosen, Likely, Piece
from narrows.infer.sampling import SEEDS, Sampler
from narrows.infer.stream import StopStrings, TextStream
from narrows.kernels.arrays import Floats
from narrows.spec.errors import NarrowsError

_NOWHERE = -1


@final
class Rehearsal:
    """What a text would choose, token by token, by the numbers that it will draw by; nothing is
    said. `over`: its grammar lets nothing more come.
    """

    def __init__(self, sampler: Sampler, guide: Guide | None, ends: frozenset[int]) -> None:
        self._sampler, self._guide, self._ends = sampler, guide, ends
        self.over = False

    def choose(self, logits_V: Floats) -> int | None:
        """The next token; None where the text would end, or it cannot be told."""
        try:
            token = self._sampler.choose(logits_V, self._guide and self._guide.allowed())
            if token in self._ends:
                return None
            if self._guide:
                self._guide.took(token)
                self.over = self._guide.whole
        except NarrowsError:
            return None  # the text itself will tell of its grammar
        return token


@final
class Writing:
    """`slot` is where its cache lies, `read` how much of its prompt is there already, `last` the
    token to be read next, and `wrote_s` when it was chosen. `written` was read behind the prompt;
    `tokens` counts what was chosen.

    With `guesses`, so many tokens at most are guessed from what the text said before, and read
    along. Each is chosen as ever; a guess is right where it is the token that is chosen.
    """

    def __init__(
        self, answer: Answer, choice: int, tokenizer: Tokenizer, guesses: int = 0
    ) -> None:  # fmt: skip
        request = answer.request
        self.answer, self.choice = answer, choice
        self.slot, self.read, self.last = _NOWHERE, 0, _NOWHERE
        self.wrote_s: float | None = None
        self.written: list[int] = []
        self.tokens = 0
        self._lookup = Lookup(request.prompt, guesses) if guesses else None
        self._ends = tokenizer.ends
        seed = (request.sampling.seed + choice) % SEEDS
        sampling = msgspec.structs.replace(request.sampling, seed=seed)
        self._sampler = Sampler(sampling, tokenizer.vocabulary)
        self._sampler.saw(request.prompt)
        self._text = TextStream(tokenizer, request.prompt)
        self._stops = StopStrings(request.stop)
        self._guide = request.guide and request.guide.copy()
        self._told = 0
        self._chosen: list[Chosen] = []

    @property
    def left(self) -> int:
        """How many tokens may follow the next."""
        return self.answer.request.tokens_max - self.tokens - 1

    def guess(self) -> tuple[int, ...]:
        """What may follow `last`, by what was said before."""
        return self._lookup.guess()[: self.left] if self._lookup else ()

    def since(self, count: int) -> list[int]:
        """The tokens behind the first `count`, `last` included."""
        prompt = self.answer.request.prompt
        beyond = max(0, count - len(prompt))
        return [*prompt[count:], *self.written[beyond:], self.last]

    def rehearsal(self) -> Rehearsal:
        """From where the text is."""
        return Rehearsal(self._sampler.copy(), self._guide and self._guide.copy(), self._ends)

    def go_on(self, logits: Sequence[Floats], guess: Sequence[int] = ()) -> bool:
        """Choose the token behind those read, and those behind a guess as far as it is right; hand
        over what they complete. Whether the text goes on, by reading `last`.
        """
        for right, logits_V in enumerate(logits):
            if self.last != _NOWHERE:
                self.written.append(self.last)
            if not self._choose(logits_V):
                return False
            if right == len(guess) or guess[right] != self.last:
                break
        if self._lookup and guess:
            self._lookup.found(right)
        return True

    def _choose(self, logits_V: Floats) -> bool:
        token = self._sampler.choose(logits_V, self._guide and self._guide.allowed())
        if token in self._ends:
            self._finish("end")
            return False
        if self._guide:
            self._guide.took(token)
        self.last = token
        self.tokens += 1
        if self._lookup:
            self._lookup.add(token)
        if self.answer.request.logprobs is not None:
            self._chosen.append(self._odds(token, logits_V, self.answer.request.logprobs))
        text = self._stops.push(self._text.push(token))
        if self._guide and self._guide.whole:
            self._finish("end", text)
            return False
        if self._stops.found or self.tokens == self.answer.request.tokens_max:
            self._finish("length", text)
            return False
        if text:
            self.answer.put(self._piece(text))
        return True

    def _finish(self, why: Finish, text: str = "") -> None:
        text += self._stops.push(self._text.finish()) + self._stops.finish()
        self.answer.put(self._piece(text, "stop" if self._stops.found else why))

    def _piece(self, text: str, finish: Finish | None = None) -> Piece:
        chosen, self._chosen = tuple(self._chosen), []
        told, self._told = self._told, self.tokens
        return Piece(self.choice, text, self.tokens - told, chosen, finish)

    def _odds(self, token: int, logits_V: Floats, count: int) -> Chosen:
        known_V = logits_V[: self._sampler.vocabulary].astype(np.float64)
        moved_V = known_V - known_V.max()
        odds_V = moved_V - np.log(np.exp(moved_V).sum())
        tokens = np.argsort(-odds_V, kind="stable")[:count]
        pairs = zip(tokens.tolist(), odds_V[tokens].tolist(), strict=True)
        return Chosen(Likely(token, float(odds_V[token])), tuple(Likely(*each) for each in pairs))
