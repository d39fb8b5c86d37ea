"""How likely a model finds tokens, many sequences at once.

A causal model is read with padding behind each sequence, which nothing before it attends to: so a
batch changes no number but by rounding (tests hold 1 and 8 to 1e-5 in fp32).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from narrows.evaluate.passes import Pass, Passes, Whole
from narrows.evaluate.progress import Talk
from narrows.model.transformer import Transformer
from narrows.plan.reading import LOGITS

_POSITIONS = 8192
"""Read at once at most, padding among them: more are no quicker, and hold more memory."""


class Reading(NamedTuple):
    """Tokens of which those from `first` on are asked for, each behind all before it."""

    tokens: Sequence[int]
    first: int


class Likelihood(NamedTuple):
    """The negative logarithm of what the tokens asked for are given, in nats; whether each of them
    was the likeliest.
    """

    nats: float
    greedy: bool


@final
class Reader:
    """Reads with one model, `batch` sequences at a time where they are short; `context` is how many
    tokens it takes. Its passes are counted among the given ones.
    """

    def __init__(
        self, model: Transformer, batch: int, context: int | None = None,
        passes: Passes | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.batch = batch if pads_exactly(model) else 1
        self.context = context or model.spec.context
        self.passes = passes or Passes(model)

    @torch.inference_mode()
    def read(
        self, readings: Sequence[Reading], done: Callable[[Sequence[Reading]], object] = len
    ) -> list[Likelihood]:
        """One for each, in their order. A reading is one token longer than the model reads; `done`
        is told of those that were read together.
        """
        found: dict[int, Likelihood] = {}
        for places in self._grouped(readings):
            together = [readings[i] for i in places]
            with self.passes.timed() as made:
                found |= zip(places, self._together(together), strict=True)
                made[_pass(together)] += 1
            done(together)
        return [found[i] for i in range(len(readings))]

    def announce(self, readings: Sequence[Reading], what: str, talk: Talk) -> None:
        """Say how long reading these will take where that is worth it."""
        self.passes.announce(self.planned(readings), what, talk)

    def planned(self, readings: Sequence[Reading]) -> Counter[Pass]:
        """The passes that these would take."""
        return Counter(_pass([readings[i] for i in each]) for each in self._grouped(readings))

    def _grouped(self, readings: Sequence[Reading]) -> Iterator[list[int]]:
        """Places of those that are read together, the longest first."""
        order = sorted(range(len(readings)), key=lambda i: -len(readings[i].tokens))
        start = 0
        while start < len(order):
            longest = len(readings[order[start]].tokens) - 1
            count = min(self.batch, max(1, _POSITIONS // longest))
            yield order[start : start + count]
            start += count

    def _together(self, readings: Sequence[Reading]) -> list[Likelihood]:
        device = self.model.head_VD.device
        longest = _pass(readings).positions
        assert all(0 < each.first < len(each.tokens) for each in readings)
        assert longest <= self.model.spec.context
        rows = [[*each.tokens[:-1], *[0] * (longest + 1 - len(each.tokens))] for each in readings]
        hidden_BTD = self.model.hidden(torch.tensor(rows, device=device))
        asked = [each.tokens[each.first :] for each in readings]
        hidden_MD = torch.cat([
            hidden_BTD[b, each.first - 1 : len(each.tokens) - 1] for b, each in enumerate(readings)
        ])  # fmt: skip
        targets_M = torch.tensor([token for tokens in asked for token in tokens], device=device)
        nats_M, greedy_M = self._scored(hidden_MD, targets_M)
        counts = [len(tokens) for tokens in asked]
        parts = zip(nats_M.split(counts), greedy_M.split(counts), strict=True)
        return [Likelihood(float(nats.sum()), bool(greedy.all())) for nats, greedy in parts]

    def _scored(self, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Nats of each target [M] fp64, and whether it is the likeliest."""
        chunk = max(1, LOGITS // self.model.spec.vocabulary)
        nats, greedy = [], []
        for x_CD, targets_C in zip(hidden_MD.split(chunk), targets_M.split(chunk), strict=True):
            logits_CV = self.model.logits(x_CD).float()
            right_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
            nats.append((logits_CV.logsumexp(-1) - right_C).double())
            greedy.append(logits_CV.argmax(-1) == targets_C)
        return torch.cat(nats), torch.cat(greedy)


def _pass(readings: Sequence[Reading]) -> Whole:
    """That of readings of which the first is the longest."""
    return Whole(len(readings), len(readings[0].tokens) - 1)


def pads_exactly(model: Transformer) -> bool:
    """Whether tokens behind a sequence leave it as it is: experts of a limited capacity have more
    room in a longer one.
    """
    return model.spec.experts is None or model.spec.experts.capacity is None
