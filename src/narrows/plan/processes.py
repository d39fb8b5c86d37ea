"""Several processes: over which axes they may be spread, and what that asks of the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import msgspec

from narrows.plan.family import divisors
from narrows.plan.layouts import SPREAD
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Sharding
from narrows.spec.job import LayoutIntent
from narrows.spec.layout import Layout
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec, Relative

SHARDINGS = get_args(Sharding)
Axis = Literal["tensor", "pipeline", "context"]
AXES: tuple[Axis, ...] = get_args(Axis)
_NAMES: dict[Axis, str] = {
    "tensor": "tensor parallelism", "pipeline": "a pipeline", "context": "context parallelism",
}  # fmt: skip
_TOGETHER_MOST = 1.1
"""How many times as fast as one process the processes of one host may compute: more was measured
while other work held the cores, of which several processes get more than one.
"""


def check(intent: LayoutIntent, model: ModelSpec, batch: int) -> None:
    """Raises BadInput where a model or a batch cannot be divided as the intent says."""
    for what, count, name, ranks in _divisions(intent, model, batch):
        if count % ranks:
            raise BadInput(
                f"{count} {what} cannot be divided among {ranks}",
                hint=f"--set layout.{name}=N with N a divisor of {count}",
            )
    for axis in AXES:
        refuse_whole(model, axis, getattr(intent, axis) or 1)
    stages = (intent.pipeline or 1) * _pieces(intent)
    if stages > model.layers:
        raise BadInput(
            f"{model.layers} layers do not fill {stages} pieces of a pipeline",
            hint=f"--set layout.pipeline=N with N at most {model.layers}",
        )


def refuse_whole(model: ModelSpec, axis: Axis, ranks: int) -> None:
    """Raises BadInput where the model has a part that several ranks of an axis cannot divide."""
    encoder = {"encoder beside the decoder": model.encoder_layers > 0}
    reasons = {
        "tensor": {
            **encoder, "norm over all heads' queries": model.query_norm == "whole",
            "pooler": model.pooler, "transform before the head": model.head_transform,
        },
        "pipeline": {
            **encoder, "pooler": model.pooler,
            "transform before the head": model.head_transform,
            "one table of relative positions for all layers": isinstance(model.positions, Relative),
        },
        "context": encoder,
    }  # fmt: skip
    for reason, there in reasons[axis].items():
        if there and ranks > 1:
            raise BadInput(
                f"{_NAMES[axis]} knows no {reason} yet",
                hint=f"layout.{axis} = 1, with layout.data or layout.sharding instead",
            )


def counts(intent: LayoutIntent, machine: Machine) -> list[int]:
    """How many processes are considered: as many as are asked for; else one, and as many as this
    machine's processors and a measured link allow.
    """
    asked = intent.processes or intent.given
    if intent.processes or asked > 1:
        return [asked]
    threads = machine.device.threads
    measured = {
        link.ranks for link in machine.links
        if link.hosts == 1 and link.ranks <= threads and link.together is not None
        and link.together.value <= _TOGETHER_MOST
    }  # fmt: skip
    return [1, *sorted(measured - {1})]


def spreads(
    intent: LayoutIntent, model: ModelSpec, batch: int, count: int
) -> Iterator[dict[str, Any]]:
    """The ways to spread the model and its batch over `count` processes that the intent leaves
    open and that the model's sizes allow.
    """
    fixed = {name: getattr(intent, name) for name in SPREAD if getattr(intent, name) is not None}
    # Parts of a sequence, copies of a sharded set and experts elsewhere are for what does not fit
    # otherwise: they are there where somebody asks for them.
    beside = (intent.replicas or 1) * (intent.context or 1)
    for data, tensor, pipeline in _factors(count // beside):
        axes = {"data": data, "tensor": tensor, "pipeline": pipeline}
        if any(fixed.get(name, size) != size for name, size in axes.items()):
            continue
        for way in _ways({**axes, **fixed}, fixed):
            try:
                check(LayoutIntent(**way), model, batch)
            except BadInput:
                continue
            yield way


def _factors(count: int) -> Iterator[tuple[int, int, int]]:
    for tensor in divisors(count):
        for pipeline in divisors(count // tensor):
            yield count // tensor // pipeline, tensor, pipeline


def _ways(axes: dict[str, Any], fixed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How the axes may be used: what is sharded, and the schedule of a pipeline."""
    shared = axes["data"] * axes.get("context", 1) > 1
    shardings = SHARDINGS if shared and "sharding" not in fixed else (axes.get("sharding", "none"),)
    schedules: tuple[tuple[str, int], ...] = (("1f1b", 1),)
    if axes["pipeline"] > 1:
        schedules = ("1f1b", 1), ("gpipe", 1), ("1f1b", 2), ("zero_bubble", 2)
    for sharding, (schedule, interleave) in itertools.product(shardings, schedules):
        way = {"schedule": schedule, "interleave": interleave, **axes, "sharding": sharding}
        alone = "schedule" in fixed or "interleave" in fixed
        if alone and (way["schedule"], way["interleave"]) != (schedule, interleave):
            continue
        yield way


def _pieces(intent: LayoutIntent) -> int:
    """Of a stage: a zero-bubble pipeline has two where nothing else was said."""
    return intent.interleave or (2 if intent.schedule == "zero_bubble" else 1)


def fewer(layout: Layout) -> Layout | None:
    """The same global batch on half the ranks that read different sequences, each with twice the
    micro-batches and threads; None where there is no half.
    """
    name = "replicas" if layout.replicas % 2 == 0 else "data"
    half, odd = divmod(getattr(layout, name), 2)
    if odd:
        return None
    smaller = msgspec.structs.replace(
        layout, **{name: half}, accumulation=2 * layout.accumulation, threads=2 * layout.threads
    )
    around = smaller.data * smaller.context * smaller.tensor
    expert = max(n for n in range(1, layout.expert + 1) if not (around % n or layout.expert % n))
    return msgspec.structs.replace(smaller, expert=expert)


def named(layout: Layout) -> str:
    """The layout's processes in words, such as "data 2 x tensor 2"; empty of one."""
    names = ("replicas", "data", "tensor", "pipeline", "context", "expert")
    several = [f"{name} {getattr(layout, name)}" for name in names if getattr(layout, name) > 1]
    told = " x ".join(several)
    if layout.sharding != "none" and several:
        told += f", {layout.sharding} sharded"
    if layout.pipeline > 1:
        pieces = "interleaved " if layout.schedule == "1f1b" and layout.interleave > 1 else ""
        told += f", {pieces}{layout.schedule.replace('_', ' ')}"
    return told


def _divisions(
    intent: LayoutIntent, model: ModelSpec, batch: int
) -> Iterator[tuple[str, int, str, int]]:
    tensor, context = intent.tensor or 1, intent.context or 1
    yield "sequences of a batch", batch, "data", intent.batches
    yield "heads", model.heads, "tensor", tensor
    yield "kv_heads", model.kv_heads, "tensor", tensor
    yield "feed-forward columns", model.feed_forward_width, "tensor", tensor
    # Causal contexts are cut in two pieces a rank, and each of them among tensor ranks.
    yield "positions", model.context, "context", context * (2 if context > 1 else 1) * tensor
    experts = model.experts.count if model.experts else 1
    yield "experts", experts, "expert", intent.expert or 1
