"""Answers to several prompts at once, each as if it were written alone.

Prompts need not be of one length: the sequences of a batch keep step with each other, position by
position. What all have is read together; from there on a sequence whose prompt goes on is given its
next token, and one whose prompt is over chooses. So nothing is padded or masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, final

import msgspec
import torch
from torch import Tensor

from narrows.data.order import number
from narrows.evaluate.likelihood import pads_exactly
from narrows.evaluate.passes import Decode, Pass, Passes, Prefill
from narrows.evaluate.progress import Progress, Talk
from narrows.infer.generate import Finish
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampler, Sampling
from narrows.infer.stream import StopStrings, TextStream
from narrows.infer.torch_decoding import spoken
from narrows.kernels.arrays import Floats


class Prompt(NamedTuple):
    """Tokens to go on from, and what tells them from others where the answer is drawn."""

    tokens: Sequence[int]
    number: int = 0


class Manuscript(NamedTuple):
    """How answers are written: at most `tokens` each, up to the first of `stop`."""

    tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    batch: int = 8


class Written(NamedTuple):
    """An answer, of how many tokens it is, and why it ended."""

    text: str
    tokens: int
    finish: Finish


def write(
    generator: Generator, prompts: Sequence[Prompt], how: Manuscript, passes: Passes, talk: Talk
) -> list[Written]:
    """One for each prompt, in their order; a prompt and its answer must fit the context."""
    batch = how.batch if pads_exactly(generator.model) else 1
    shortest_first = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    together = [shortest_first[start : start + batch] for start in range(0, len(prompts), batch)]
    planned = sum((_planned([prompts[i] for i in each], how) for each in together), Counter())
    passes.announce(planned, f"{len(prompts):,} answers, if all are {how.tokens} tokens", talk)
    progress = Progress(talk, "answers", len(prompts))
    found: dict[int, Written] = {}
    for places in together:
        writers = [_Writer(generator, prompts[i], how) for i in places]
        with passes.timed() as made:
            _write_together(generator, writers, how.tokens, made)
        found |= zip(places, (each.written() for each in writers), strict=True)
        progress.add(len(places))
    return [found[i] for i in range(len(prompts))]


def _planned(prompts: Sequence[Prompt], how: Manuscript) -> Counter[Pass]:
    """The passes of these together, where every answer is as long as it may be."""
    lengths = [len(each.tokens) for each in prompts]
    first, stop = min(lengths), max(lengths) + how.tokens
    planned = Counter[Pass](Decode.at(len(prompts), place) for place in range(first, stop - 1))
    planned[Prefill(len(prompts), first, stop)] += 1
    return planned


@torch.inference_mode()
def _write_together(
    generator: Generator, writers: Sequence[_Writer], tokens: int, made: Counter[Pass]
) -> None:
    model, device = generator.model, generator.model.head_VD.device
    lengths = [len(each.prompt) for each in writers]
    place, stop = min(lengths), max(lengths) + tokens
    assert stop <= model.spec.context
    caches = model.caches(len(writers), stop)
    made[Prefill(len(writers), place, stop)] += 1
    tokens_BT = torch.tensor([each.prompt[:place] for each in writers], device=device)
    hidden_BD = model.hidden(tokens_BT, caches, 0)[:, -1]
    while True:
        following = _following(generator, writers, hidden_BD, place)
        if all(each.done for each in writers):
            return
        tokens_BT = torch.tensor(following, device=device)[:, None]
        hidden_BD = model.hidden(tokens_BT, caches, place)[:, -1]
        made[Decode.at(len(writers), place)] += 1
        place += 1


def _following(
    generator: Generator, writers: Sequence[_Writer], hidden_BD: Tensor, place: int
) -> list[int]:
    """The token of each sequence at a place: the prompt's, one that is chosen, or any at all for a
    sequence that is done.
    """
    choosing = [b for b, each in enumerate(writers) if each.chooses(place)]
    logits_CV = spoken(generator.model.logits(hidden_BD[choosing])) if choosing else None
    following = [each.prompt[place] if place < len(each.prompt) else 0 for each in writers]
    for row, b in enumerate(choosing):
        assert logits_CV is not None
        following[b] = writers[b].choose(logits_CV[row])
    return following


@final
class _Writer:
    """One answer in the making."""

    def __init__(self, generator: Generator, prompt: Prompt, how: Manuscript) -> None:
        self.prompt = list(prompt.tokens)
        self.done = False
        self._ends, self._most = generator.tokenizer.ends, how.tokens
        self._sampler = Sampler(_own(how.sampling, prompt), generator.tokenizer.vocabulary)
        self._sampler.saw(self.prompt)
        self._text = TextStream(generator.tokenizer, self.prompt)
        self._stops = StopStrings(how.stop)
        self._pieces: list[str] = []
        self._count = 0
        self._finish: Finish = "length"

    def chooses(self, place: int) -> bool:
        """Whether the token at that place is the model's to say."""
        return not self.done and place >= len(self.prompt)

    def choose(self, logits_V: Floats) -> int:
        """The next token, noted."""
        token = self._sampler.choose(logits_V)
        if token in self._ends:
            self._end("end")
            return token
        self._count += 1
        self._pieces.append(self._stops.push(self._text.push(token)))
        if self._stops.found or self._count == self._most:
            self._end("stop" if self._stops.found else "length")
        return token

    def written(self) -> Written:
        """What was written."""
        return Written("".join(self._pieces), self._count, self._finish)

    def _end(self, why: Finish) -> None:
        self.done, self._finish = True, why
        self._pieces.append(self._stops.push(self._text.finish()) + self._stops.finish())
        if self._stops.found:
            self._finish = "stop"


def _own(sampling: Sampling, prompt: Prompt) -> Sampling:
    """With a seed of the prompt's own, whatever it is read together with."""
    own = number(sampling.seed, prompt.number) >> 1
    return msgspec.structs.replace(sampling, seed=own)
