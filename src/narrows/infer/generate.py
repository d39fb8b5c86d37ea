"""Text from a model that was loaded: as often as one likes, and as it is written.

    generate(generator, prompt) → Generation, an iterator over pieces of text

Nothing here knows of terminals or networks; an engine that writes many texts at once will call the
same parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, final

from narrows.data.template import Template
from narrows.data.tokenizers import Tokenizer
from narrows.infer.core import Core
from narrows.infer.decoding import Decoding
from narrows.infer.grammar import Guide
from narrows.infer.sampling import Sampler, Sampling
from narrows.infer.stream import StopStrings, TextStream
from narrows.kernels.arrays import Floats
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision
from narrows.spec.model import ModelSpec

ServingPrecision = Literal["fp32", "bf16", "int8", "int4"]
"""What weights are in where a model answers; of packed ones, most of them."""


Folders = Mapping[str | None, Path]
"""Of adapters, by the names that texts ask for them by; None is of texts that ask for none."""


class Writer(Protocol):
    """A model that goes on with texts, however it is computed."""

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What its tokens are."""

    @property
    def template(self) -> Template | None:
        """How it was taught conversations, where it was."""

    @property
    def precision(self) -> ServingPrecision:
        """What its weights are in."""

    @property
    def cache(self) -> CachePrecision | None:
        """What keys and values are kept in; None is what it computes in."""

    @property
    def weight_bytes(self) -> int:
        """Of all of them."""

    def decoding(self, tokens_max: int) -> Decoding:
        """A sequence to begin, of at most so many tokens."""

    def core(self, slots: int, context: int) -> Core:
        """What computes so many texts at once, each of at most so many positions."""


class Written(Protocol):
    """What an account needs to know of a text that was written."""

    prompt: tuple[int, ...]
    seconds: list[float]

    @property
    def guessed(self) -> str | None:
        """How many guesses were right, in words, where any are made."""

    @property
    def cache_bytes(self) -> int:
        """What keys and values take."""


class TooLong(BadInput):
    """More tokens than the model reads."""


Finish = Literal["length", "stop", "end"]
"""Why a text ended: as long as asked, a stop string, or the model ended its document."""


def generate(
    generator: Writer, prompt: str, *, tokens: int = 200, sampling: Sampling | None = None,
    stop: Sequence[str] = (), guide: Guide | None = None,
) -> Generation:  # fmt: skip
    """At most `tokens` tokens that go on from `prompt`; an empty one starts a new document.

    The text ends before the first of the strings `stop`, and keeps to the guide's grammar. Raises
    BadInput at once where something cannot be: a prompt longer than the context, or of characters
    that the tokenizer lacks.
    """
    if tokens < 1:
        raise BadInput(f"tokens is {tokens}", hint="ask for at least 1")
    found = tokens_of(prompt, generator)
    generation = Generation(generator, found, tokens, sampling or Sampling(), stop)
    generation.guide = guide and guide.copy()
    return generation


@final
class Generation:
    """Text as it is written; iterate once. `tokens` counts what was written so far, without the
    end of document, and `finish` says at the end why it ended. `seconds` are those of each token,
    the end of document included: the first has read the prompt, or what of it
    `decoding` had not.
    """

    def __init__(
        self, generator: Writer, prompt: Sequence[int], tokens_max: int, sampling: Sampling,
        stop: Sequence[str], decoding: Decoding | None = None,
    ) -> None:  # fmt: skip
        self.prompt = tuple(prompt)
        self.tokens = 0
        self.seconds: list[float] = []
        self.finish: Finish = "length"
        self.guide: Guide | None = None
        self._tokens_max = tokens_max
        self._ends = generator.tokenizer.ends
        self._decoding = decoding or generator.decoding(len(prompt) + tokens_max)
        self._sampler = Sampler(sampling, generator.tokenizer.vocabulary)
        self._text = TextStream(generator.tokenizer, prompt)
        self._stops = StopStrings(stop)

    def __iter__(self) -> Iterator[str]:
        self._sampler.saw(self.prompt)
        token = self._next(self.prompt, self._decoding.resume)
        while token not in self._ends:
            self.tokens += 1
            piece = self._stops.push(self._text.push(token))
            if piece:
                yield piece
            if self.guide and self.guide.whole:
                self.finish = "end"
                break
            if self._stops.found or self.tokens == self._tokens_max:
                break
            token = self._next([token], self._decoding.read)
        else:
            self.finish = "end"
        last = self._stops.push(self._text.finish()) + self._stops.finish()
        if self._stops.found:
            self.finish = "stop"
        if last:
            yield last

    @property
    def guessed(self) -> None:
        """Nothing is guessed."""
        return None

    @property
    def cache_bytes(self) -> int:
        """What keys and values take so far: memory is taken as positions are filled."""
        room = self._decoding.room
        filled = min(room, len(self.prompt) + len(self.seconds))
        return self._decoding.cache_bytes * filled // room

    def _next(self, tokens: Sequence[int], read: Callable[[Sequence[int]], Floats]) -> int:
        """The token after `tokens`."""
        began = time.perf_counter()
        logits_V = read(tokens)
        token = self._sampler.choose(logits_V, self.guide and self.guide.allowed())
        if self.guide and token not in self._ends:
            self.guide.took(token)
        self.seconds.append(time.perf_counter() - began)
        return token


def tokens_of(prompt: str, generator: Writer) -> list[int]:
    """The tokens that a text is gone on from; raises BadInput where it is longer than the context,
    or of characters that the tokenizer lacks.
    """
    tokenizer, context = generator.tokenizer, generator.spec.context
    text = tokenizer.encode(prompt)
    found = [*tokenizer.begin, *text] or [tokenizer.end_of_document]
    if len(found) > context:
        what = f"the prompt is {len(found)} tokens long, the model reads {context}"
        raise TooLong(what, hint="shorten the prompt")
    unknown = sorted(set(prompt) - set(tokenizer.decode(text)))
    if unknown and "\ufffd" in tokenizer.decode(text):
        shown = " ".join(repr(each) for each in unknown[:8])
        what = f"the model's tokenizer does not know {shown}"
        raise BadInput(what, hint="leave it out: no such character was trained on")
    return found
