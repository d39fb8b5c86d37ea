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
from narrows.train.kept import State, rooms
from narrows.train.offload import Place, Room
from narrows.train.rules import Parameter, Step, averaged, pieces, update

_SOON = 10.0
"""An average of few steps forgets sooner: it keeps at most (1 + t) / (10 + t) of itself."""


class Optimizer:
    """Accumulates gradients over micro-batches, clips by their norm, and steps.

    It has what this process has of each parameter; the norm is that of all. With one micro-batch a
    step the gradient is used where autograd left it; with more it is summed in fp32. Fused, each
    parameter is stepped in the backward pass that follows `begin`, and its gradient freed.
    `squares` are those of the micro-batches' own gradients, where it is `watching` them. What it
    keeps is at the `place`.
    """

    def __init__(self, split: Split, settings: Settings, place: Place) -> None:
        self.split, self.settings, self.place = split, settings, place
        self.kernels: Kernels = split.model.kernels
        self.held = split.parameters()
        self.parameters = {name: local(parameter) for name, parameter in self.held.items()}
        self.own = self._settled()
        self.sums: dict[str, Tensor] = {}
        # Of several processes, gradients are summed behind what they tell each other.
        summing = split.layout.accumulation > 1 and split.layout.processes == 1
        self._room = _room(self.parameters, place) if summing else {}
        self.watching, self.squares = False, 0.0
        self.span: Callable[[str], AbstractContextManager[object]] = nullcontext
        place.span = lambda name: self.span(name)
        self._within: Step | None = None
        self._norm_squared = 0.0
        if settings.fused or summing:
            taken = self._stepped if settings.fused else self._summed
            for name, parameter in self.held.items():
                parameter.register_post_accumulate_grad_hook(partial(taken, name))

    def _settled(self) -> dict[str, Parameter]:
        """Every parameter with its state, where it is to be."""
        rests, settings = self.split.rests, self.settings
        found = {
            name: kept(settings, tuple(each.shape), within=_within(name))
            for name, each in self.parameters.items()
        }
        wanted = {f"rest.{name}": Room(tuple(t.shape), t.dtype) for name, t in rests.items()}
        for name, states in found.items():
            for what in states:
                wanted |= rooms(what, name)
        self.place.reserve(wanted)
        own = {}
        for name, states in found.items():
            rest = rests.pop(name, None)
            rest = None if rest is None else self.place.take(f"rest.{name}", rest)
            master = self.place.master(self.parameters[name], rest)
            made = {e.kind: State(e, name, master, self.kernels, self.place) for e in states}
            own[name] = Parameter(master, made, _within(name))
        return own

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
            with self.place.using([target]):
                target.copy_(read(name))
        for name, own in self.own.items():
            self.place.down(self.parameters[name], own.master)

    def masters(self) -> dict[str, Master]:
        """By name."""
        return {name: own.master for name, own in self.own.items()}

    def averages(self) -> dict[str, Tensor]:
        """The weights that answer, as they are computed with, where those are not in training."""
        if not self.settings.averages:
            return {}
        found = {}
        for name, own in self.own.items():
            parameter = self.parameters[name]
            with self.place.reading(own.averaged(0, parameter.numel())):
                found[name] = self._averaged(own).to(parameter.dtype)
        return found

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within, the model has the weights that answer; behind, those in training, bit for bit."""
        if not self.settings.averages:
            yield
            return
        with torch.no_grad():
            before = {name: each.clone() for name, each in self.parameters.items()}
            for name, own in self.own.items():
                parameter = self.parameters[name]
                with self.place.reading(own.averaged(0, parameter.numel())):
                    parameter.copy_(self._averaged(own))
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
        own, place = self.own[name], self.place
        update(self.settings.rule, self.kernels, own, place.near(gradient), step, place)
        place.up(self.parameters[name], own.master)

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
        gradient = self.place.near(local(parameter.grad))
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
            flat = own.states["average"].values.view(-1)
            for start, stop in pieces(flat.numel(), self.place.most):
                with self.place.using(own.averaged(start, stop)):
                    values = self.kernels.values(own.master.piece(start, stop))
                    flat[start:stop].lerp_(values, 1.0 - keeps)

    def _clear(self) -> None:
        for parameter in self.held.values():
            parameter.grad = None
        for total in self.sums.values():
            total.zero_()


def _room(parameters: dict[str, Tensor], place: Place) -> dict[str, Tensor]:
    """A place for each one's sum, all in one piece: taken one by one in a backward pass, they would
    lie among the activations and leave holes between them.
    """
    sizes = [each.numel() for each in parameters.values()]
    near = place.near(next(iter(parameters.values())).new_empty(0))
    divided = torch.empty(sum(sizes), device=near.device).split(sizes)
    return {
        name: piece.view(each.shape)
        for (name, each), piece in zip(parameters.items(), divided, strict=True)
    }


def _within(name: str) -> bool:
    """Whether a parameter belongs to a block."""
    return name.startswith("blocks.")
