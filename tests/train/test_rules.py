"""Each rule equals its reference over many steps: torch's own, schedulefree's, or a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from narrows.kernels.interface import Master
from narrows.kernels.reference import TorchKernels
from narrows.spec.optimizer import (
    RULES,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Muon,
    Optimizer,
    Rule,
    ScheduleFree,
    kept,
)
from narrows.train import rules
from narrows.train.kept import State, rooms
from narrows.train.offload import OnDevice
from narrows.train.rules import Parameter, Step, averaged, update

RATE, DECAY, STEPS = 0.02, 0.1, 12
KERNELS = TorchKernels()
PLACE = OnDevice(torch.device("cpu"))
BETAS = (0.9, 0.95)
SHAPES = [(48, 64), (90,)]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
THEIRS: dict[str, tuple[Rule, Make]] = {
    "adamw": (AdamW(), lambda p: torch.optim.AdamW(p, RATE, BETAS, weight_decay=DECAY)),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, RATE, BETAS, weight_decay=DECAY)),
    "adagrad": (Adagrad(), lambda p: torch.optim.Adagrad(p, RATE, weight_decay=DECAY)),
    "sgd": (SGD(), lambda p: torch.optim.SGD(p, RATE, 0.9, weight_decay=DECAY)),
    "nesterov": (
        SGD(momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, RATE, 0.8, weight_decay=DECAY, nesterov=True),
    ),
    "no momentum": (SGD(momentum=0.0), lambda p: torch.optim.SGD(p, RATE, weight_decay=DECAY)),
    "adafactor": (Adafactor(), lambda p: torch.optim.Adafactor(p, RATE, weight_decay=DECAY)),
    "muon": (
        Muon(),
        lambda p: torch.optim.Muon(
            p, RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw", eps=1e-7
        ),
    ),
}


def own(rule: Rule, value: Tensor, bits: Any = 32, dtype: torch.dtype | None = None) -> Parameter:
    optimizer = Optimizer(rule=rule, learning_rate=RATE, state_bits=bits)
    master = Master(value.clone(), None)
    if dtype is not None:
        master = Master(value.to(dtype), torch.empty(value.shape, dtype=torch.int16))
        KERNELS.set_(master, value)
    found = kept(optimizer, tuple(value.shape), within=value.ndim > 1)
    PLACE.reserve({name: room for each in found for name, room in rooms(each, "x").items()})
    states = {each.kind: State(each, "x", master, KERNELS, PLACE) for each in found}
    return Parameter(master, states, value.ndim > 1)


def values(parameter: Parameter) -> Tensor:
    return KERNELS.values(parameter.master)


def gradients(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(STEPS)]


def stepped(rule: Rule, parameter: Parameter) -> Parameter:
    """After all steps, each gradient given twice as large and scaled by a half."""
    for number, gradient in enumerate(gradients(tuple(parameter.master.weight.shape)), 1):
        update(rule, KERNELS, parameter, 2.0 * gradient, Step(RATE, DECAY, number, 0.5), PLACE)
    return parameter


def first(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1


def reference(make: Make, shape: tuple[int, ...]) -> Tensor:
    theirs = nn.Parameter(first(shape))
    optimizer = make([theirs])
    for gradient in gradients(shape):
        theirs.grad = gradient.clone()
        optimizer.step()
    return theirs.detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", THEIRS)
def test_a_rule_is_torch_s(name: str, shape: tuple[int, ...]) -> None:
    rule, make = THEIRS[name]
    if name == "muon" and len(shape) == 1:
        # What is no matrix is AdamW's.
        make = THEIRS["adamw"][1]
    found = values(stepped(rule, own(rule, first(shape))))
    torch.testing.assert_close(found, reference(make, shape), rtol=2e-5, atol=2e-6)


def test_lion_is_its_formula() -> None:
    value = first((48, 64))
    momentum = torch.zeros_like(value)
    for gradient in gradients((48, 64)):
        sign = (0.9 * momentum + 0.1 * gradient).sign()
        momentum = 0.99 * momentum + 0.01 * gradient
        value = value - RATE * (sign + DECAY * value)
    found = values(stepped(Lion(), own(Lion(), first((48, 64)))))
    torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)


def test_schedule_free_is_its_authors() -> None:
    from schedulefree import AdamWScheduleFreeReference

    theirs = nn.Parameter(first((48, 64)))
    optimizer = AdamWScheduleFreeReference([theirs], RATE, BETAS, weight_decay=DECAY)
    optimizer.train()
    for gradient in gradients((48, 64)):
        theirs.grad = gradient.clone()
        optimizer.step()
    rule = ScheduleFree()
    found = stepped(rule, own(rule, first((48, 64))))
    torch.testing.assert_close(values(found), theirs.detach(), rtol=1e-4, atol=1e-5)
    optimizer.eval()
    torch.testing.assert_close(
        averaged(rule, KERNELS, found), theirs.detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", RULES)
def test_pieces_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES[name]()
    whole = values(stepped(rule, own(rule, first((48, 64)))))
    monkeypatch.setattr(rules, "_PIECE", 512)
    assert torch.equal(values(stepped(rule, own(rule, first((48, 64))))), whole)


@pytest.mark.parametrize("name", RULES)
def test_a_master_in_two_parts_goes_the_same_way(name: str) -> None:
    rule = RULES[name]()
    found = stepped(rule, own(rule, first((48, 64)), dtype=torch.bfloat16))
    wide = values(stepped(rule, own(rule, first((48, 64)))))
    # What was half way between two weights is an fp32 step off, and what follows from that.
    torch.testing.assert_close(values(found), wide, rtol=1e-6, atol=1e-9)
    assert torch.equal(found.master.weight, values(found).to(torch.bfloat16))
    assert not torch.equal(wide, first((48, 64)))


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("name", ["adamw", "adam", "adagrad", "sgd", "muon"])
def test_fewer_bits_go_nearly_the_same_way(name: str, bits: int) -> None:
    rule, shape = RULES[name](), (64, 128)
    begun = first(shape)
    wide = values(stepped(rule, own(rule, begun))) - begun
    narrow = values(stepped(rule, own(rule, begun, bits))) - begun
    assert float((narrow - wide).norm() / wide.norm()) < (0.02 if bits == 16 else 0.1)


def test_several_matrices_in_one_are_made_orthogonal_one_by_one() -> None:
    several = own(Muon(), first((3, 16, 24)))
    gradient = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(5))
    step = Step(RATE, DECAY, 1, 1.0)
    update(Muon(), KERNELS, several, gradient, step, PLACE)
    for place in range(3):
        single = own(Muon(), first((3, 16, 24))[place])
        update(Muon(), KERNELS, single, gradient[place], step, PLACE)
        torch.testing.assert_close(values(several)[place], values(single))
