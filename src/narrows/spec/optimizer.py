"""How weights follow their gradients: a rule, and what stands around every rule.

`kept` says what a rule keeps of a parameter between steps. `plan` adds it up, `train` allocates it.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from narrows.spec.errors import BadInput
from narrows.spec.record import Record, at_least

StateBits = Literal[32, 16, 8]
Decayed = Literal["matrices", "all"]
BLOCK = 256
"""Values of a state in 8 bits that share a scale (arXiv:2110.02861)."""
SMALL = 4096
"""A parameter with fewer values keeps its state in fp32: there is nothing to save."""


def _shares(rule: Record, *names: str) -> None:
    for name in names:
        if not 0.0 <= getattr(rule, name) < 1.0:
            what = f"train.optimizer.{name} is {getattr(rule, name)}"
            raise BadInput(what, hint="use 0 to below 1")


def _above_nought(rule: Record, *names: str) -> None:
    for name in names:
        if not getattr(rule, name) > 0.0:
            what = f"train.optimizer.{name} is {getattr(rule, name)}"
            raise BadInput(what, hint="use more than 0")


class AdamW(Record, tag="adamw", tag_field="type"):
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _shares(self, "beta1", "beta2")
        _above_nought(self, "epsilon")


class Adam(Record, tag="adam", tag_field="type"):
    """Adam (arXiv:1412.6980); its weight decay is a part of the gradient."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _shares(self, "beta1", "beta2")
        _above_nought(self, "epsilon")


class Adagrad(Record, tag="adagrad", tag_field="type"):
    """Divides by the root of the sum of all squared gradients (jmlr.org/papers/v12/duchi11a)."""

    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        _above_nought(self, "epsilon")


class SGD(Record, tag="sgd", tag_field="type"):
    """Stochastic gradient descent, with momentum, which Nesterov's form looks ahead by."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _shares(self, "momentum")
        if self.nesterov and not self.momentum:
            raise BadInput(
                "train.optimizer.nesterov looks ahead by a momentum of nought",
                hint="--set train.optimizer.momentum=0.9, or nesterov=false",
            )


class Adafactor(Record, tag="adafactor", tag_field="type"):
    """Second moments of a matrix by its rows and columns alone, steps relative to the weights
    (arXiv:1804.04235). The second moment's share of the past is 1 - t^-`decay`, a step is at
    least `least` times the rate, and no longer than `threshold` in root mean square.
    """

    decay: float = 0.8
    least: float = 1e-3
    threshold: float = 1.0

    def __post_init__(self) -> None:
        _above_nought(self, "decay", "least", "threshold")


class Lion(Record, tag="lion", tag_field="type"):
    """The sign of a momentum (arXiv:2302.06675)."""

    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        _shares(self, "beta1", "beta2")


class Muon(Record, tag="muon", tag_field="type"):
    """Of the blocks' matrices, the momentum made orthogonal (kellerjordan.github.io/posts/muon), in
    steps as long as AdamW's (arXiv:2502.16982); AdamW of all else.
    """

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _shares(self, "momentum", "beta1", "beta2")
        _above_nought(self, "epsilon")
        at_least(1, self, "train.optimizer", "iterations")


class ScheduleFree(Record, tag="schedule_free", tag_field="type"):
    """AdamW whose answer is a mean of all its steps, in place of a falling rate
    (arXiv:2405.15682).
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _shares(self, "beta1", "beta2")
        _above_nought(self, "beta1", "epsilon")


Rule = AdamW | Adam | Adagrad | SGD | Adafactor | Lion | Muon | ScheduleFree
RuleName = Literal[
    "adamw", "adam", "adagrad", "sgd", "adafactor", "lion", "muon", "schedule_free"
]  # fmt: skip
RULES: dict[str, type[Rule]] = {
    "adamw": AdamW, "adam": Adam, "adagrad": Adagrad, "sgd": SGD, "adafactor": Adafactor,
    "lion": Lion, "muon": Muon, "schedule_free": ScheduleFree,
}  # fmt: skip


class Optimizer(Record):
    """A rule, its peak rate, and what stands around it.

    Weights decay where they are `decayed`, but for names that match a pattern of `undecayed`. The
    gradient's norm is clipped to `clip`, where that is not nought. `ema` is the share that an
    average of the weights keeps of itself in a step. What the rule keeps has `state_bits` a value.
    `fused`, each parameter is stepped within the backward pass, as soon as its gradient is there.
    """

    rule: Rule = AdamW()
    learning_rate: float
    weight_decay: float = 0.1
    decayed: Decayed = "matrices"
    undecayed: tuple[str, ...] = ()
    clip: float = 1.0
    ema: float | None = None
    state_bits: StateBits = 32
    fused: bool = False

    @property
    def operation(self) -> str:
        """What a ledger calls its step."""
        bits = "" if self.state_bits == 32 else f"_{self.state_bits}"
        return name_of(self.rule) + bits

    @property
    def averages(self) -> bool:
        """Whether other weights than those in training are evaluated and answer."""
        return self.ema is not None or isinstance(self.rule, ScheduleFree)


USUAL = Optimizer(learning_rate=1e-3)
"""AdamW, where only what it keeps matters."""


class Kept(NamedTuple):
    """A tensor that a rule keeps of a parameter: fp32, bf16, or 8 bits with scales of blocks."""

    kind: str
    shape: tuple[int, ...]
    bits: StateBits = 32

    @property
    def scales(self) -> int:
        """Scales of its blocks."""
        return -(-math.prod(self.shape) // BLOCK) if self.bits == 8 else 0

    @property
    def memory_bytes(self) -> int:
        """In memory and in a checkpoint."""
        return math.prod(self.shape) * self.bits // 8 + 4 * self.scales


def name_of(rule: Rule) -> str:
    """As a job names it."""
    return str(type(rule).__struct_config__.tag)


def orthogonal(rule: Rule, shape: tuple[int, ...], *, within: bool) -> bool:
    """Whether Muon steps a parameter of this shape: a matrix, or several, `within` a block."""
    return isinstance(rule, Muon) and within and len(shape) >= 2


def kept(optimizer: Optimizer, shape: tuple[int, ...], *, within: bool) -> tuple[Kept, ...]:
    """What is kept of a parameter between steps beside a master of its weights; `within` says
    whether it belongs to a block.
    """
    rule, bits = optimizer.rule, optimizer.state_bits
    if math.prod(shape) < SMALL:
        bits = 32
    found: tuple[Kept, ...]
    match rule:
        case SGD():
            found = (Kept("first", shape, bits),) if rule.momentum else ()
        case Lion():
            found = (Kept("first", shape, bits),)
        case Adagrad():
            found = (Kept("second", shape, bits),)
        case Adafactor() if len(shape) >= 2:
            rows, columns = (*shape[:-1], 1), (*shape[:-2], 1, shape[-1])
            found = Kept("rows", rows), Kept("columns", columns)
        case Adafactor():
            found = (Kept("second", shape),)
        case Muon() if orthogonal(rule, shape, within=within):
            found = (Kept("first", shape, bits),)
        case ScheduleFree():
            found = Kept("second", shape), Kept("anchor", shape), Kept("mass", (1,))
        case _:
            found = Kept("first", shape, bits), Kept("second", shape, bits)
    average = () if optimizer.ema is None else (Kept("average", shape),)
    return (*found, *average)
