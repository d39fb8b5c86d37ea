"""What an optimizer keeps of each parameter, what its step moves, and the layouts that allow it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from narrows.plan.layouts import Array, Layouts, Shapes
from narrows.plan.share import Share, Table
from narrows.spec.errors import BadInput
from narrows.spec.exchange import GradientExchange, LocalSteps, PowerSGD
from narrows.spec.fleet import Offload
from narrows.spec.job import OnSpike
from narrows.spec.layout import Layout
from narrows.spec.optimizer import Adafactor, AdamW, Muon, Optimizer, Rule, kept, name_of

_ALONE = Layout(
    micro_batch=1, accumulation=1, precision="bf16", recompute="none", compile=False,
    kernels="torch", threads=1, loss_chunk=1,
)  # fmt: skip
_ITERATIONS_MOST = 99
_MASTER = 8.0
"""A master is read and written; that of a bf16 weight is the weight and as many bytes beside it."""
_AVERAGE = 12.0
"""An average is read and written, and the master read."""
_EAGER: dict[str, float] = {
    "adam": 24.0, "adagrad": 32.0, "sgd": 26.0, "adafactor": 160.0, "lion": 38.0, "muon": 40.0,
    "schedule_free": 64.0,
}  # fmt: skip
"""Bytes a parameter that torch's operations of a rule move, state and master among them, what they
keep in the cache for less: sgd, lion and adafactor as one run each of 26M parameters took (LOG.md),
the others counted.
"""
_CODED = {32: 0.0, 16: 4.0, 8: 60.0}
"""And of each state, for its way from fewer bits and back: in 8, a search among 256 codes, whose
time is a guess.
"""


AT_HAND_BYTES = 48 << 20
"""Of what lies on a disk, what a step has in memory at once (train/offload.py)."""


def state_bytes(share: Share, optimizer: Optimizer) -> float:
    """Bytes of what is kept beside weights and masters, of one process's part of a model."""
    if _plain(optimizer):
        return 8.0 * share.kept
    return float(sum(
        each.memory_bytes
        for shape, within in _shapes(share)
        for each in kept(optimizer, shape, within=within)
    ))  # fmt: skip


def whole_state_bytes(model: Shapes, optimizer: Optimizer) -> Array:
    """The same of whole models, [models, 1]."""
    if _plain(optimizer):
        return 8.0 * model.parameters_trained
    shares = (Share.of(spec, _ALONE, learning=model.learning) for spec in model.specs)
    return np.array([[state_bytes(share, optimizer)] for share in shares])


def checkpoint_bytes(model: Shapes, value_bytes: int, optimizer: Optimizer) -> float:
    """Of what learns of one model: weights as they are computed with, what makes masters of those
    in bf16, what the rule keeps, and the weights that answer where those are others.
    """
    own = value_bytes * (2 if optimizer.averages else 1) + (2 if value_bytes < 4 else 0)
    learning, state = model.parameters_trained, whole_state_bytes(model, optimizer)
    return float((learning * own + state)[0, 0])


def moved_bytes(optimizer: Optimizer) -> float:
    """Read and written for a parameter in a step, but for its gradient."""
    average = _AVERAGE if optimizer.ema is not None else 0.0
    states = kept(optimizer, (1 << 10, 1 << 10), within=False)
    coded = sum(_CODED[each.bits] for each in states)
    if isinstance(optimizer.rule, AdamW):
        moving = _MASTER + sum(2.0 * each.bits / 8 for each in states if each.kind != "average")
    else:
        moving = _EAGER[name_of(optimizer.rule)]
    return moving + coded + average


def offloaded_bytes(optimizer: Optimizer, value_bytes: int) -> float:
    """Of a parameter, what does not stay beside its weight where the optimizer is offloaded: what
    the rule keeps, and the rest of its master.
    """
    side = 1 << 10
    states = kept(optimizer, (side, side), within=True)
    return sum(each.memory_bytes for each in states) / side**2 + 4.0 - value_bytes


def orthogonalized(model: Shapes, rule: Rule) -> Iterator[tuple[Array, Array, Array, int]]:
    """Products (m,k) @ (k,n) that make the momenta of one block's matrices orthogonal, and how
    often each is taken: two with the matrix itself and its Gram matrix's square an iteration.
    """
    if not isinstance(rule, Muon):
        return
    heads = model.heads * model.head_width
    for rows, columns in (
        (model.qkv_width, model.width), (model.width, heads), (model.up_width, model.width),
        (model.width, model.feed_forward_width),
    ):  # fmt: skip
        small, large = np.minimum(rows, columns), np.maximum(rows, columns)
        yield small, small, large, rule.iterations
        yield small, small, small, rule.iterations
        yield small, large, small, rule.iterations


def check(
    optimizer: Optimizer, layout: Layout, exchange: GradientExchange, on_spike: OnSpike
) -> None:
    """Raises BadInput where the layout, or what else was asked for, and the optimizer exclude each
    other.
    """
    _check_precision(optimizer)
    _check_whole(optimizer, layout)
    _check_offload(optimizer, layout, exchange)
    if optimizer.fused:
        _check_fused(optimizer, layout, on_spike)
    if optimizer.averages and isinstance(exchange, LocalSteps):
        raise BadInput(
            "ranks that take steps of their own have no average of their weights in common",
            hint="leave train.exchange out, or train.ema and schedule_free",
        )


def check_device(offload: Offload, kind: str) -> None:
    """Raises BadInput where that is no place for what such a device does not hold."""
    if offload == "host" and kind == "cpu":
        raise BadInput(
            "a processor's own memory is the host's: there is nothing to offload to it",
            hint="--set layout.offload=disk, or leave it out",
        )
    if offload == "disk" and kind != "cpu":
        raise BadInput(
            f"what {kind} does not hold is stepped in its host's memory, not on a disk",
            hint="--set layout.offload=host, or leave it out",
        )


def able(
    found: list[Layouts], optimizer: Optimizer, exchange: GradientExchange, on_spike: OnSpike
) -> list[Layouts]:
    """Of candidates, those that can be updated so; raises BadInput with the reason of the last
    where none can.
    """
    able: list[Layouts] = []
    refusal: BadInput | None = None
    for layouts in found:
        for index in np.flatnonzero(layouts.accumulation == 1)[:1] if optimizer.fused else [0]:
            try:
                check(optimizer, layouts.layout(int(index)), exchange, on_spike)
            except BadInput as error:
                refusal = error
            else:
                able.append(_with(layouts, optimizer))
    if able:
        return able
    if refusal is None:
        check(optimizer, found[0].layout(0), exchange, on_spike)
    assert refusal is not None
    raise refusal


def _with(layouts: Layouts, optimizer: Optimizer) -> Layouts:
    """Updated so; fused, of one micro-batch a step alone."""
    if not optimizer.fused:
        return replace(layouts, optimizer=optimizer)
    names = ("micro_batch", "accumulation", "recompute", "threads", "loss_chunk")
    single = layouts.accumulation == 1
    return replace(
        layouts, optimizer=optimizer, **{name: getattr(layouts, name)[single] for name in names}
    )


def _plain(optimizer: Optimizer) -> bool:
    """Two moments in fp32, whatever a parameter's shape."""
    fine = isinstance(optimizer.rule, AdamW) and optimizer.state_bits == 32
    return fine and optimizer.ema is None


def _shapes(share: Share) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Of every parameter that a process has a piece of, and whether it belongs to a block."""
    for groups, within, shards in (
        (share.blocks, True, share.shards),
        (share.experts, True, share.expert_shards),
        ((share.ends,), False, share.shards),
    ):
        for group in groups:
            for table in (each for each in group if each.learns):
                yield _shape(table, shards), within


def _shape(table: Table, shards: int) -> tuple[int, ...]:
    rows = table.padded(shards) // shards // table.columns
    return (rows,) if table.columns == 1 else (rows, table.columns)


def _check_precision(optimizer: Optimizer) -> None:
    rule, name = optimizer.rule, name_of(optimizer.rule)
    if isinstance(rule, Muon) and rule.iterations > _ITERATIONS_MOST:
        raise BadInput(
            f"train.optimizer.iterations is {rule.iterations}: torch's Muon takes fewer than 100",
            hint="--set train.optimizer.iterations=5",
        )
    if optimizer.state_bits < 32 and name in ("adafactor", "schedule_free"):
        what = "rows and columns" if name == "adafactor" else "weights"
        raise BadInput(
            f"train.state_bits is {optimizer.state_bits}: what {name} keeps are {what}, in fp32",
            hint='leave train.state_bits out, or train.optimizer = "adamw"',
        )
    if optimizer.ema is not None and name == "schedule_free":
        raise BadInput(
            "schedule_free answers with a mean of its own: train.ema would be another",
            hint="leave train.ema out",
        )


def _check_whole(optimizer: Optimizer, layout: Layout) -> None:
    """What is not computed value by value needs whole parameters on each process."""
    needs = None
    if isinstance(optimizer.rule, (Muon, Adafactor)):
        needs = name_of(optimizer.rule)
    elif optimizer.state_bits == 8:
        needs = "an optimizer's state in 8 bits"
    if needs is None:
        return
    if layout.sharding != "none":
        raise BadInput(
            f"{needs} needs whole parameters on each process, and {layout.sharding} are sharded",
            hint="--set layout.sharding=none, or train.optimizer=adamw in 32 bits",
        )
    for name in ("tensor", "expert"):
        if getattr(layout, name) > 1:
            raise BadInput(
                f"{needs} needs whole parameters on each process, and layout.{name} is "
                f"{getattr(layout, name)}",
                hint=f"--set layout.{name}=1, or train.optimizer=adamw in 32 bits",
            )


def _check_offload(optimizer: Optimizer, layout: Layout, exchange: GradientExchange) -> None:
    """On a disk each process has files of its own; to the host's memory go whole shards alone."""
    if layout.offload == "none":
        return
    if isinstance(exchange, LocalSteps):
        raise BadInput(
            "ranks that take steps of their own compare masters, which must be at hand",
            hint="leave layout.offload or train.exchange out",
        )
    if layout.offload == "host" and isinstance(optimizer.rule, Muon):
        raise BadInput(
            "muon's products are the device's, and layout.offload=host steps beside it",
            hint="--set train.optimizer=adamw, or leave layout.offload out",
        )
    if layout.offload == "disk" or layout.processes == 1:
        return
    for name in ("tensor", "pipeline", "expert"):
        if getattr(layout, name) > 1:
            raise BadInput(
                f"the host's memory takes shards of whole models, and layout.{name} is "
                f"{getattr(layout, name)}",
                hint=f"--set layout.{name}=1, or layout.offload=none",
            )
    if isinstance(exchange, PowerSGD):
        raise BadInput(
            "PowerSGD keeps whole gradients on each device: none of them go to the host",
            hint="leave layout.offload or train.exchange out",
        )


def _check_fused(optimizer: Optimizer, layout: Layout, on_spike: OnSpike) -> None:
    """A step within the backward pass cannot wait for anything behind it."""
    if optimizer.clip:
        raise BadInput(
            f"train.clip is {optimizer.clip:g}: the norm of all gradients is not known while each "
            "is used at once",
            hint="--set train.clip=0, or train.fused=false",
        )
    if layout.processes > 1:
        raise BadInput(
            f"gradients of {layout.processes} processes are added up behind the backward pass",
            hint="--set layout.processes=1, or train.fused=false",
        )
    if layout.accumulation > 1:
        sequences = layout.micro_batch * layout.accumulation
        raise BadInput(
            f"gradients of {layout.accumulation} micro-batches are added up before they are used",
            hint=f"--set layout.micro_batch={sequences}, or train.fused=false",
        )
    if on_spike == "skip":
        raise BadInput(
            "a step that was taken within the backward pass cannot be left out",
            hint="--set train.on_spike=rollback, or stop, or train.fused=false",
        )
