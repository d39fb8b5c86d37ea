"""How gradients are exchanged: what a layout allows, and the bytes that a step has to move."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
from msgspec.structs import replace

from narrows.plan.layouts import Layouts
from narrows.plan.operation import Operation, kernel
from narrows.spec.errors import BadInput
from narrows.spec.exchange import Bf16, GradientExchange, LocalSteps, PowerSGD
from narrows.spec.job import OnSpike, TrainIntent
from narrows.spec.layout import Layout
from narrows.spec.ledger import Kind, Phase
from narrows.spec.plan import Checkpointing, Evaluation, Schedule

_FP32, _BF16 = 4.0, 2.0
_COMPRESSED, _MET = 19.0, 20.0
"""Times that each value is read or written. PowerSGD: gradients joined 2, the error added 3, kept
aside 2, stacked by shape 4, both products and the sum of factors 3, the new error 3, the sum 2. A
meeting: the difference 3, joined 2, its mean 2, momentum 5, Nesterov's step 3 and 3, masters 2.
"""
_OUT = "leave train.exchange out"


def islands(exchange: GradientExchange, layout: Layout) -> int:
    """Sets of ranks that train apart between synchronizations: the replicas, or where there are
    none, the data ranks; one where all take every step together.

    Raises BadInput where the layout cannot be exchanged so.
    """
    if isinstance(exchange, PowerSGD):
        _check_whole(layout)
    if not isinstance(exchange, LocalSteps):
        return 1
    if layout.replicas > 1:
        return layout.replicas
    if layout.data == 1:
        raise BadInput(
            "local steps are taken by several ranks that read different sequences, here is one",
            hint=f"--set layout.data=2, or {_OUT}",
        )
    if layout.sharding != "none":
        raise BadInput(
            f"a rank that keeps a share of the {layout.sharding} cannot take steps of its own",
            hint="--set layout.sharding=none, or shard within each of layout.replicas",
        )
    if layout.context * layout.tensor % layout.expert:
        raise BadInput(
            "experts spread over data ranks cannot take steps of their own",
            hint="--set layout.expert=1, or spread them within each of layout.replicas",
        )
    return layout.data


def _check_whole(layout: Layout) -> None:
    """PowerSGD's factors are of whole matrices, and what it left out stays with each rank."""
    apart = [name for name in ("tensor", "pipeline", "expert") if getattr(layout, name) > 1]
    if layout.sharding != "none":
        raise BadInput(
            f"PowerSGD needs the whole gradient on each rank, and {layout.sharding} are sharded",
            hint=f'--set layout.sharding=none, or train.exchange.type="bf16", or {_OUT}',
        )
    if apart:
        raise BadInput(
            f"PowerSGD needs the whole model on each rank, and layout.{apart[0]} is "
            f"{getattr(layout, apart[0])}",
            hint=f'--set layout.{apart[0]}=1, or train.exchange.type="bf16", or {_OUT}',
        )


def check(
    exchange: GradientExchange, on_spike: OnSpike, evaluation: Evaluation,
    checkpoints: Checkpointing,
) -> None:  # fmt: skip
    """Raises BadInput where local steps and what is due between them exclude each other."""
    if not isinstance(exchange, LocalSteps):
        return
    for name, each in (("evaluate", evaluation.every), ("checkpoint", checkpoints.every)):
        if each % exchange.every:
            raise BadInput(
                f"train.{name}_every is {each}: all have the same weights each {exchange.every} "
                "steps alone",
                hint=f"--set train.{name}_every={due(exchange, each)}",
            )
    if on_spike == "rollback":
        raise BadInput(
            "ranks that take steps of their own do not roll back together",
            hint="--set train.on_spike=skip, or stop",
        )


def able(found: list[Layouts], exchange: GradientExchange) -> list[Layouts]:
    """Of candidates, those that can exchange gradients so, and do; raises BadInput with the reason
    of the last where none can.
    """
    kept: list[Layouts] = []
    refusal: BadInput | None = None
    for layouts in found:
        try:
            islands(exchange, layouts.layout(0))
        except BadInput as error:
            refusal = error
        else:
            kept.append(replace(layouts, gradients=exchange))
    if refusal is not None and not kept:
        raise refusal
    return kept


def due(exchange: GradientExchange, every: int) -> int:
    """The next number of steps after which all ranks have the same weights."""
    each = exchange.every if isinstance(exchange, LocalSteps) else 1
    return -(-every // each) * each


def settled(intent: TrainIntent, schedule: Schedule, why: dict[str, str]) -> GradientExchange:
    """The intent's exchange; PowerSGD begins after the warm-up, as its authors advise."""
    exchange = intent.exchange
    if not isinstance(exchange, PowerSGD) or exchange.start_step is not None:
        return exchange
    start = max(2, schedule.warmup_steps)
    why["exchange"] = f"exact for {start} steps: early gradients change most"
    return msgspec.structs.replace(exchange, start_step=start)


def gradient_bytes(exchange: GradientExchange, shapes: Iterable[tuple[int, ...]]) -> float:
    """Bytes of what ranks add up for an average step, of parameters of these shapes: a sum among n
    sends 2 (n-1)/n of them from each.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if isinstance(exchange, Bf16):
        return _BF16 * sum(sizes)
    if isinstance(exchange, LocalSteps):
        return _FP32 * sum(sizes) / exchange.every
    if isinstance(exchange, PowerSGD):
        return _FP32 * sum(_factors(exchange, shape) for shape in shapes)
    return _FP32 * sum(sizes)


def _factors(exchange: PowerSGD, shape: tuple[int, ...]) -> float:
    """Values sent of one gradient, by the rule of torch's powerSGD_hook."""
    rows, columns = shape[0], math.prod(shape[1:])
    factors = (rows + columns) * min(rows, columns, exchange.rank)
    return factors if factors * exchange.least_saving < rows * columns else rows * columns


def kept_bytes(exchange: GradientExchange) -> float:
    """Of each parameter, what is kept between steps: what islands began with and their momentum
    (train/outer.py), or the error (parallel/compressed.py).
    """
    if isinstance(exchange, LocalSteps):
        return 2 * _FP32
    return _FP32 * isinstance(exchange, PowerSGD)


def exchanged(layouts: Layouts, parameters: float) -> list[Operation]:
    """What PowerSGD or a meeting reads and writes of all values that a process has."""
    exchange, once = layouts.gradients, np.ones((1, layouts.micro_batch.size))
    values = parameters * once
    place: tuple[Phase, Kind] = ("optimizer", "pointwise")
    if isinstance(exchange, PowerSGD):
        return [kernel("compressed", place, values, once, _COMPRESSED * _FP32 * values)]
    if isinstance(exchange, LocalSteps):
        count = once / exchange.every
        return [kernel("met", place, values, count, _MET * _FP32 * values)]
    return []
