"""How each rule steps one parameter, in fp32; torch's own functions where it has one.

Most rules go value by value: they are given a piece of a parameter at a time, small enough for the
cache, so that the many operations of an update read memory once. Adafactor and Muon see all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim._adafactor import adafactor
from torch.optim._muon import muon
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from narrows.kernels.interface import AdamWStep, Kernels, Master, Moments
from narrows.spec.optimizer import (
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Muon,
    Rule,
    ScheduleFree,
    orthogonal,
)
from narrows.train.kept import State
from narrows.train.offload import Place

_PIECE = 1 << 17
"""Values: a multiple of a block in 8 bits; four tensors of them are 2 MB."""
_EPSILON = torch.finfo(torch.float32).eps
_MUON = (3.4445, -4.775, 2.0315)
"""Of the Newton-Schulz iteration, as torch.optim.Muon has them."""
_MUON_LEAST = 1e-7


class Step(NamedTuple):
    """One update's numbers: its rate, the weight decay, its number from 1, and what gradients are
    multiplied by.
    """

    rate: float
    decay: float
    number: int
    scale: float


class Updated(NamedTuple):
    """A parameter, or a piece of it: its fp32 values, which change in place, its gradient, and what
    the rule keeps, by kind.
    """

    master: Tensor
    gradient: Tensor
    state: dict[str, Tensor]

    def wide(self, scale: float) -> Tensor:
        """The gradient in fp32, times `scale`."""
        return self.gradient.to(torch.float32) * scale


class Parameter(NamedTuple):
    """A parameter of this process; `within` says whether it belongs to a block."""

    master: Master
    states: dict[str, State]
    within: bool

    def stepped(self, start: int, stop: int) -> Iterator[Tensor]:
        """What a step of the values from `start` to `stop` changes, but for the weight."""
        yield from self._rest(start, stop)
        for kind, state in self.states.items():
            if kind != "average":
                yield from state.piece(start, stop)

    def averaged(self, start: int, stop: int) -> Iterator[Tensor]:
        """What an average of them is made of, and itself."""
        yield from self._rest(start, stop)
        for kind in ("average", "anchor"):
            if kind in self.states:
                yield from self.states[kind].piece(start, stop)

    def _rest(self, start: int, stop: int) -> Iterator[Tensor]:
        rest = self.master.piece(start, stop).rest
        if rest is not None:
            yield rest


@torch.no_grad()
def update(
    rule: Rule, kernels: Kernels, own: Parameter, gradient: Tensor, step: Step, place: Place
) -> None:
    """One step of a parameter, whose state is at the `place`."""
    shape, count = tuple(own.master.weight.shape), own.master.weight.numel()
    if isinstance(rule, Adafactor):
        with place.using(own.stepped(0, count)), _opened(kernels, own.master) as values:
            _adafactor(rule, Updated(values, gradient, _values(own)), step)
    elif isinstance(rule, Muon) and orthogonal(rule, shape, within=own.within):
        with (
            place.using(own.stepped(0, count)),
            own.states["first"].opened(0, count) as first,
            _opened(kernels, own.master) as values,
        ):
            _muon(rule, Updated(values, gradient, {"first": first.view(shape)}), step)
    else:
        fused = isinstance(rule, AdamW) and all(s.bits == 32 for s in own.states.values())
        for start, stop in pieces(count, place.most if fused else _PIECE):
            with place.using(own.stepped(start, stop)):
                _piece(rule, kernels, own, (gradient, start, stop), step)


def _piece(
    rule: Rule, kernels: Kernels, own: Parameter, of: tuple[Tensor, int, int], step: Step
) -> None:
    gradient, start, stop = of
    gradient, master = gradient.reshape(-1)[start:stop], own.master.piece(start, stop)
    with ExitStack() as stack:
        state = {
            kind: own.states[kind].values if kind == "mass"
            else stack.enter_context(own.states[kind].opened(start, stop))
            for kind in own.states if kind != "average"
        }  # fmt: skip
        if isinstance(rule, AdamW | Muon):
            moments = Moments(state["first"], state["second"])
            kernels.adamw_(master, moments, gradient, _numbers(rule, step))
            return
        piece = Updated(stack.enter_context(_opened(kernels, master)), gradient, state)
        match rule:
            case Adam():
                _adam(rule, piece, step)
            case Adagrad():
                _adagrad(rule, piece, step)
            case SGD():
                _sgd(rule, piece, step)
            case Lion():
                _lion(rule, piece, step)
            case ScheduleFree():
                last = stop == own.master.weight.numel()
                _schedule_free(rule, piece, step, last=last)


def averaged(rule: ScheduleFree, kernels: Kernels, own: Parameter) -> Tensor:
    """The mean that a schedule-free parameter answers with."""
    anchor = own.states["anchor"].values
    return kernels.values(own.master).lerp(anchor, 1.0 - 1.0 / rule.beta1)


@contextmanager
def _opened(kernels: Kernels, master: Master) -> Iterator[Tensor]:
    """Its fp32 values; what is changed in place is kept."""
    values = kernels.values(master)
    yield values
    kernels.set_(master, values)


def _numbers(rule: AdamW | Muon, step: Step) -> AdamWStep:
    return AdamWStep(
        step.rate, step.decay, rule.beta1, rule.beta2, rule.epsilon, step.number, step.scale
    )


def _adam(rule: Adam, own: Updated, step: Step) -> None:
    adam(
        [own.master], [own.wide(step.scale)], [own.state["first"]], [own.state["second"]], [],
        _before(own, step), fused=own.master.device.type != "meta", amsgrad=False,
        beta1=rule.beta1, beta2=rule.beta2, lr=step.rate, weight_decay=step.decay,
        eps=rule.epsilon, maximize=False,
    )  # fmt: skip


def _adagrad(rule: Adagrad, own: Updated, step: Step) -> None:
    adagrad(
        [own.master], [own.wide(step.scale)], [own.state["second"]], _before(own, step),
        lr=step.rate, weight_decay=step.decay, lr_decay=0.0, eps=rule.epsilon, maximize=False,
    )  # fmt: skip


def _sgd(rule: SGD, own: Updated, step: Step) -> None:
    # A momentum of nought at first is torch's: it begins with the gradient itself.
    momentum: list[Tensor | None] = [own.state.get("first")]
    sgd(
        [own.master], [own.wide(step.scale)], momentum, weight_decay=step.decay,
        momentum=rule.momentum, lr=step.rate, dampening=0.0, nesterov=rule.nesterov,
        maximize=False,
    )  # fmt: skip


def _lion(rule: Lion, own: Updated, step: Step) -> None:
    gradient, first = own.wide(step.scale), own.state["first"]
    own.master.mul_(1.0 - step.rate * step.decay)
    own.master.add_(first.lerp(gradient, 1.0 - rule.beta1).sign_(), alpha=-step.rate)
    first.lerp_(gradient, 1.0 - rule.beta2)


def _adafactor(rule: Adafactor, own: Updated, step: Step) -> None:
    factored = "rows" in own.state
    adafactor(
        [own.master], [own.wide(step.scale)], [own.state["rows"]] if factored else [None],
        [own.state["columns"]] if factored else [None],
        [None] if factored else [own.state["second"]], _before(own, step), d=rule.threshold,
        lr=step.rate, beta2_decay=-rule.decay, weight_decay=step.decay, eps1=_EPSILON,
        eps2=rule.least, maximize=False,
    )  # fmt: skip


def _muon(rule: Muon, own: Updated, step: Step) -> None:
    matrices = own.master.view(-1, *own.master.shape[-2:])
    gradients = own.wide(step.scale).view_as(matrices)
    momenta = own.state["first"].view_as(matrices)
    muon(
        list(matrices), list(gradients), list(momenta), lr=step.rate, weight_decay=step.decay,
        momentum=rule.momentum, nesterov=rule.nesterov, ns_coefficients=_MUON,
        ns_steps=rule.iterations, eps=_MUON_LEAST, adjust_lr_fn="match_rms_adamw",
        has_complex=False,
    )  # fmt: skip


def _schedule_free(rule: ScheduleFree, own: Updated, step: Step, *, last: bool) -> None:
    """The master is where gradients are taken, y; z is the anchor, and the mean x of all z, each
    weighed by its rate squared, is between them (algorithm 1 of arXiv:2405.15682).
    """
    second, anchor, mass = own.state["second"], own.state["anchor"], own.state["mass"]
    gradient = own.wide(step.scale)
    second.mul_(rule.beta2).addcmul_(gradient, gradient, value=1.0 - rule.beta2)
    root = second.div(1.0 - rule.beta2**step.number).sqrt_().add_(rule.epsilon)
    gradient.div_(root).add_(own.master, alpha=step.decay)
    weight = step.rate**2
    total = float(mass) + weight
    share = weight / total
    own.master.lerp_(anchor, share)
    own.master.add_(gradient, alpha=step.rate * (rule.beta1 * (1.0 - share) - 1.0))
    anchor.sub_(gradient, alpha=step.rate)
    if last:
        mass.fill_(total)


def _values(own: Parameter) -> dict[str, Tensor]:
    return {kind: state.values for kind, state in own.states.items() if kind != "average"}


def _before(own: Updated, step: Step) -> list[Tensor]:
    """torch counts the step itself."""
    return [torch.tensor(float(step.number - 1), device=own.master.device)]


def pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Where pieces of so many values of all begin and end."""
    for start in range(0, count, size):
        yield start, min(count, start + size)
