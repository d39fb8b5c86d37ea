"""An optimizer over a model's parameters: their masters in fp32, and what a rule keeps of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor

from narrows.kernels.interface import Kernels, Master
from narrows.parallel.split import Split, local
from narrows.spec.optimizer import Optimizer as Settings
from narrows.spec.optimizer import ScheduleFree, kept
from narrows.train.kept import State
from narrows.train.rules import Parameter, Step, averaged, update

_SOON = 10.0
"""An average of few steps forgets sooner: it keeps at most (1 + t) / (10 + t) of itself."""


class Optimizer:
    """Accumulates gradients over micro-batches, clips by their norm, and steps.

    It has what this process has of each parameter; the norm is that of all. With one micro-batch a
    step the gradient is used where autograd left it; with more it is summed in fp32. Fused, each
    parameter is stepped in the backward pass that follows `begin`, and its gradient freed.
    `squares` are those of the micro-batches' own gradients, where it is `watching` them.
    """

    def __init__(self, split: Split, settings: Settings) -> None:
        self.split, self.settings = split, settings
        self.kernels: Kernels = split.model.kernels
        self.held = split.parameters()
        self.parameters = {name: local(parameter) for name, parameter in self.held.items()}
        self.own = {
            name: _own(name, Master(each, split.rests.get(name)), settings, self.kernels)
            for name, each in self.parameters.items()
        }
        self.sums: dict[str, Tensor] = {}
        # Of several processes, gradients are summed behind what they tell each other.
        summing = split.layout.accumulation > 1 and split.layout.processes == 1
        self._room = _room(self.parameters) if summing else {}
        self.watching, self.squares = False, 0.0
        self.span: Callable[[str], AbstractContextManager[object]] = nullcontext
        self._within: Step | None = None
        self._norm_squared = 0.0
        if settings.fused or summing:
            taken = self._stepped if settings.fused else self._summed
            for name, parameter in self.held.items():
                parameter.register_post_accumulate_grad_hook(partial(taken, name))

    def accumulate(self) -> None:
        """Move every parameter's gradient into its fp32 sum."""
        for name, parameter in self.held.items():
            if parameter.grad is not None:
                self._sum(name, parameter)

    def begin(self, count: int, factor: float) -> None:
        """Before the backward pass: fused, it takes the `count`-th step at `factor` of the peak
        rate.
        """
        self.squares = 0.0
        if self.settings.fused:
            self._within = self._step(count, factor, 1.0)
            self._norm_squared = 0.0

    def step(
        self, count: int, factor: float, accept: Callable[[float], bool] = math.isfinite
    ) -> float:
        """One update, the `count`-th from 1, at `factor` of the peak rate; returns the gradient's
        norm before clipping. A norm that is not accepted changes nothing; fused, it comes too late
        for that.
        """
        if self._within is not None:
            self._within, norm = None, self._norm_squared**0.5
            if accept(norm):
                self._average(count)
            return norm
        gradients = dict(self._gradients())
        self.split.complete(gradients)
        owned = [each for name, each in gradients.items() if name in self.split.owned]
        norm = self.split.total(sum(self.kernels.squared_norm(each) for each in owned)) ** 0.5
        taken = accept(norm)
        self.split.settle(taken)
        if taken:
            clip = self.settings.clip
            step = self._step(count, factor, min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
            for name, gradient in gradients.items():
                self._update(name, gradient, step)
            self._average(count)
        self._clear()
        return norm

    def state(self) -> dict[str, Tensor]:
        """What beside the weights makes them masters (where they are not fp32 themselves), and what
        the rule keeps, by kind and name.
        """
        named = {}
        for name, own in self.own.items():
            if own.master.rest is not None:
                named[f"rest.{name}"] = own.master.rest
            for state in own.states.values():
                named |= {f"{kind}.{name}": each for kind, each in state.tensors().items()}
        return named

    def kinds(self) -> set[str]:
        """Of what the rule keeps."""
        return {kind for own in self.own.values() for kind in own.states}

    def load(self, read: Callable[[str], Tensor]) -> None:
        """Take back what `state` gave, each tensor as `read` by its name, beside weights that were
        taken back, too.
        """
        for name, target in self.state().items():
            target.copy_(read(name))

    def masters(self) -> dict[str, Master]:
        """By name."""
        return {name: own.master for name, own in self.own.items()}

    def averages(self) -> dict[str, Tensor]:
        """The weights that answer, as they are computed with, where those are not in training."""
        if not self.settings.averages:
            return {}
        return {
            name: self._averaged(own).to(self.parameters[name].dtype)
            for name, own in self.own.items()
        }

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within, the model has the weights that answer; behind, those in training, bit for bit."""
        if not self.settings.averages:
            yield
            return
        with torch.no_grad():
            before = {name: each.clone() for name, each in self.parameters.items()}
            for name, own in self.own.items():
                self.parameters[name].copy_(self._averaged(own))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, each in self.parameters.items():
                    each.copy_(before[name])

    def _averaged(self, own: Parameter) -> Tensor:
        rule = self.settings.rule
        if isinstance(rule, ScheduleFree):
            return averaged(rule, self.kernels, own)
        return own.states["average"].values

    def _gradients(self) -> Iterable[tuple[str, Tensor]]:
        for name, parameter in self.held.items():
            if name in self.sums:
                yield name, self.sums[name]
            elif parameter.grad is not None:
                yield name, local(parameter.grad)

    def _step(self, count: int, factor: float, scale: float) -> Step:
        rate, decay = self.settings.learning_rate * factor, self.settings.weight_decay
        return Step(rate, decay, count, scale)

    def _update(self, name: str, gradient: Tensor, step: Step) -> None:
        if not self._decays(name, gradient):
            step = step._replace(decay=0.0)
        update(self.settings.rule, self.kernels, self.own[name], gradient, step)

    def _decays(self, name: str, gradient: Tensor) -> bool:
        s = self.settings
        if any(fnmatchcase(name, pattern) for pattern in s.undecayed):
            return False
        return s.decayed == "all" or gradient.ndim >= 2

    def _stepped(self, name: str, parameter: Tensor) -> None:
        """Its gradient is there: step it, unless that is no number."""
        if self._within is None or parameter.grad is None:
            return
        gradient, parameter.grad = local(parameter.grad), None
        with self.span("optimizer"):
            squared = self.kernels.squared_norm(gradient)
            self._norm_squared += squared
            if math.isfinite(squared):
                self._update(name, gradient, self._within)

    def _summed(self, name: str, parameter: Tensor) -> None:
        """Its gradient is there: sum it while caches have it, and free it."""
        if parameter.grad is not None:
            with self.span("accumulate"):
                self._sum(name, parameter)

    def _sum(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if name not in self.sums:
            room = self._room.get(name)
            self.sums[name] = (
                torch.zeros_like(self.parameters[name], dtype=torch.float32)
                if room is None else room.zero_()
            )  # fmt: skip
        gradient = local(parameter.grad)
        if self.watching:
            self.squares += self.kernels.squared_norm(gradient)
        self.kernels.accumulate_(self.sums[name], gradient)
        parameter.grad = None

    @torch.no_grad()
    def _average(self, count: int) -> None:
        keeps = self.settings.ema
        if keeps is None:
            return
        keeps = min(keeps, (1.0 + count) / (_SOON + count))
        for own in self.own.values():
            own.states["average"].values.lerp_(self.kernels.values(own.master), 1.0 - keeps)

    def _clear(self) -> None:
        for parameter in self.held.values():
            parameter.grad = None
        for total in self.sums.values():
            total.zero_()


def _room(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """A place for each one's sum, all in one piece: taken one by one in a backward pass, they would
    lie among the activations and leave holes between them.
    """
    sizes = [each.numel() for each in parameters.values()]
    device = next(iter(parameters.values())).device
    pieces = torch.empty(sum(sizes), device=device).split(sizes)
    return {
        name: piece.view(each.shape)
        for (name, each), piece in zip(parameters.items(), pieces, strict=True)
    }


def _own(name: str, master: Master, settings: Settings, kernels: Kernels) -> Parameter:
    within = name.startswith("blocks.")
    found = kept(settings, tuple(master.weight.shape), within=within)
    states = {each.kind: State(each, master, kernels) for each in found}
    return Parameter(master, states, within)
