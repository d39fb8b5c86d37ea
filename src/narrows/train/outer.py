"""The outer optimizer of local steps (DiLoCo, arXiv:2311.08105).

Islands of ranks train apart from the same weights. When they meet, the mean of what each has moved
away is a gradient for SGD with Nesterov's momentum, as torch.optim.SGD defines it, on the weights
they began with; from the result all begin again, each with its own AdamW moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from narrows.kernels.interface import Kernels, Master
from narrows.parallel.collectives import add_up
from narrows.parallel.mesh import Axis
from narrows.spec.exchange import LocalSteps

_BUCKET = 1 << 23
"""Values that are added up at once: enough that a link's latency does not count."""


class Outer:
    """What islands began with, and its momentum, in fp32, of the `masters` that they train."""

    def __init__(
        self, settings: LocalSteps, axis: Axis, kernels: Kernels, masters: Mapping[str, Master]
    ) -> None:
        self.settings, self.axis, self.kernels, self.masters = settings, axis, kernels, masters
        self.begun = {name: kernels.values(each).clone() for name, each in masters.items()}
        self.momentum = {name: torch.zeros_like(each) for name, each in self.begun.items()}

    @torch.no_grad()
    def meet(self) -> None:
        """All islands' masters become the same, in place."""
        s = self.settings
        for names in self._buckets():
            moved = [(self.begun[name] - self._now(name)).flatten() for name in names]
            mean = add_up(torch.cat(moved), self.axis).div_(self.axis.size)
            pieces = mean.split([each.numel() for each in moved])
            for name, piece in zip(names, pieces, strict=True):
                begun, momentum = self.begun[name], self.momentum[name]
                gradient = piece.view_as(begun)
                momentum.mul_(s.outer_momentum).add_(gradient)
                step = gradient.add(momentum, alpha=s.outer_momentum)
                begun.sub_(step, alpha=s.outer_learning_rate)
                self.kernels.set_(self.masters[name], begun)
        self.restored()

    def restored(self) -> None:
        """The masters are those of a meeting: from there islands begin."""
        for name, begun in self.begun.items():
            begun.copy_(self._now(name))

    def _now(self, name: str) -> Tensor:
        return self.kernels.values(self.masters[name])

    def _buckets(self) -> Iterator[list[str]]:
        names: list[str] = []
        size = 0
        for name in sorted(self.masters):
            names.append(name)
            size += self.begun[name].numel()
            if size >= _BUCKET:
                yield names
                names, size = [], 0
        if names:
            yield names
