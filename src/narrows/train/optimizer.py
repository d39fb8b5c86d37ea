"""AdamW over a model's parameters: fp32 masters and moments beside bf16 weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from narrows.kernels.interface import AdamWStep, Kernels, Moments
from narrows.parallel.split import Split, local
from narrows.spec.plan import AdamW


class Optimizer:
    """Accumulates gradients over micro-batches, clips by their norm, and steps.

    It has what this process has of each parameter; the norm is that of all. Matrices decay, vectors
    don't. With one micro-batch a step the gradient is used where autograd left it; with more it is
    summed in fp32.
    """

    def __init__(self, split: Split, settings: AdamW) -> None:
        self.split, self.settings = split, settings
        self.kernels: Kernels = split.model.kernels
        self.held = split.parameters()
        self.parameters = {name: local(parameter) for name, parameter in self.held.items()}
        self.moments = {name: _moments(each) for name, each in self.parameters.items()}
        self.sums: dict[str, Tensor] = {}

    def accumulate(self) -> None:
        """Move every parameter's gradient into its fp32 sum."""
        for name, parameter in self.held.items():
            if parameter.grad is None:
                continue
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(self.parameters[name], dtype=torch.float32)
            self.kernels.accumulate_(self.sums[name], local(parameter.grad))
            parameter.grad = None

    def step(
        self, count: int, factor: float, accept: Callable[[float], bool] = math.isfinite
    ) -> float:
        """One update, the `count`-th from 1, at `factor` of the peak rate; returns the gradient's
        norm before clipping. A norm that is not accepted changes nothing.
        """
        gradients = dict(self._gradients())
        self.split.complete(gradients)
        owned = [each for name, each in gradients.items() if name in self.split.owned]
        norm = self.split.total(sum(self.kernels.squared_norm(each) for each in owned)) ** 0.5
        s = self.settings
        taken = accept(norm)
        self.split.settle(taken)
        if taken:
            scale = min(1.0, s.clip / (norm + 1e-6)) if s.clip else 1.0
            for name, gradient in gradients.items():
                decay = s.weight_decay if gradient.ndim >= 2 else 0.0
                step = AdamWStep(
                    s.learning_rate * factor, decay, s.beta1, s.beta2, s.epsilon, count, scale
                )
                self._update(name, gradient, step)
        self._clear()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Masters (where the weights are not fp32 themselves) and moments by name."""
        named = {}
        for name, moments in self.moments.items():
            if moments.master.data_ptr() != self.parameters[name].data_ptr():
                named[f"master.{name}"] = moments.master
            named[f"first.{name}"] = moments.first
            named[f"second.{name}"] = moments.second
        return named

    def load(self, read: Callable[[str], Tensor]) -> None:
        """Take back what `state` gave, each tensor as `read` by its name; the weights follow their
        masters.
        """
        for name, target in self.state().items():
            target.copy_(read(name))
        self.follow_masters()

    def masters(self) -> dict[str, Tensor]:
        """The weights in fp32, by name."""
        return {name: moments.master for name, moments in self.moments.items()}

    @torch.no_grad()
    def follow_masters(self) -> None:
        """Weights that are not fp32 themselves become what their masters are."""
        for name, moments in self.moments.items():
            self.parameters[name].copy_(moments.master)

    def _gradients(self) -> Iterable[tuple[str, Tensor]]:
        for name, parameter in self.held.items():
            if name in self.sums:
                yield name, self.sums[name]
            elif parameter.grad is not None:
                yield name, local(parameter.grad)

    @torch.no_grad()
    def _update(self, name: str, gradient: Tensor, step: AdamWStep) -> None:
        parameter, moments = self.parameters[name], self.moments[name]
        shared = moments.master.data_ptr() == parameter.data_ptr()
        self.kernels.adamw_(moments, gradient, None if shared else parameter, step)

    def _clear(self) -> None:
        for parameter in self.held.values():
            parameter.grad = None
        for total in self.sums.values():
            total.zero_()


def _moments(like: Tensor) -> Moments:
    master = like if like.dtype == torch.float32 else like.to(torch.float32)
    zeros = torch.zeros_like(master)
    return Moments(master, zeros, torch.zeros_like(master))
