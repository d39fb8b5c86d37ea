"""Name what the profiler saw as the plan names it, so that the two ledgers match row by row.

A product is known by its shapes, everything else by its own name or an ancestor's. FLOP and bytes
of products are counted from the shapes that ran; of other operations they are the plan's count.
Collectives run in threads of their own while the step waits for them, in no operation at all or in
the one that called them: that time is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from torch.autograd.profiler import profile, record_function

from narrows.kernels import loss
from narrows.spec.ledger import Kind, Phase, Row
from narrows.spec.model import SwiGLU
from narrows.spec.pieces import even
from narrows.spec.plan import Plan
from narrows.train.step import Trainer, no_span

_LOOKS = 2
"""Steps that are looked into: the first finds a heap that the profiler's notes make grow, and pays
16 ms for the fresh pages of an activation of 11 MB; the second does not.
"""
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
_SPANS: dict[str, tuple[str, Phase, Kind]] = {
    "narrows::forward": ("host", "other", "launch"),
    "narrows::backward": ("host", "other", "launch"),
    "narrows::step": ("host", "other", "launch"),
    "narrows::data": ("batch", "data", "data"),
    "narrows::optimizer": ("optimizer", "optimizer", "optimizer"),
    "narrows::accumulate": ("accumulate", "optimizer", "optimizer"),
    "narrows::offload": ("offload", "optimizer", "data"),
}
_LINKS = {
    "c10d::allreduce_": "all_reduce", "c10d::_allgather_base_": "all_gather",
    "c10d::_reduce_scatter_base_": "reduce_scatter", "c10d::alltoall_base_": "all_to_all",
    "c10d::send": "send", "c10d::recv_": "send",
}  # fmt: skip
_WORKING = "gloo:"
_SPANNING = ("narrows::", "FSDP::", "PP:", "autograd::engine")
"""What spans a part of the step: its own time is the host's, or passes while it waits."""
_SHARDS: dict[str, tuple[str, Phase, Kind]] = {
    "FSDP::all_gather": ("gathered", "forward", "pointwise"),
    "FSDP::post_backward_reduce": ("scattered", "backward", "pointwise"),
}
"""What fully_shard copies around its collectives; its own spans are where the host waits."""
_POINTWISE = (
    ("orm", "norm"), ("ctivat", "activation"), ("gelu", "activation"), ("silu", "activation"),
    ("LinearBackward", "column_sum"), ("aten::sum", "column_sum"), ("embedding", "embedding"),
    ("ropout", "dropout"),
)  # fmt: skip
# What computes nothing: finding memory, and other views of it.
_HOST = (
    "empty", "empty_like", "empty_strided", "view", "_unsafe_view", "reshape", "t", "transpose",
    "detach", "slice", "split", "narrow", "as_strided", "flatten", "chunk", "unsqueeze", "expand",
    "linear", "matmul", "resolve_conj", "item", "_local_scalar_dense", "_Linear",
    "torch::autograd::AccumulateGrad",
)  # fmt: skip


def profiled_rows(trainer: Trainer, run_step: Callable[[], object]) -> tuple[Row, ...]:
    """Rows of one step, largest first; their seconds are shares that sum to one. It is run twice,
    and the second time tells.
    """
    trainer.span = lambda name: record_function(f"narrows::{name}")
    try:
        for _ in range(_LOOKS):
            with profile(use_kineto=False, record_shapes=True) as seen:
                with record_function("narrows::step"):
                    run_step()
    finally:
        trainer.span = no_span
    rows: dict[tuple[str, Phase, Kind], Row] = {}
    for event in _own(seen.function_events):
        row = _row(event, trainer.plan)
        key = (row.operation, row.phase, row.kind)
        rows[key] = _added(rows[key], row) if key in rows else row
    _give(rows, _waits(seen.function_events))
    total = sum(row.seconds for row in rows.values()) or 1.0
    planned = {(row.operation, row.phase): row for row in trainer.plan.predicted.rows}
    shares = [
        _counted(row, planned.get((row.operation, row.phase)), total) for row in rows.values()
    ]
    return tuple(sorted(shares, key=lambda row: -row.seconds))


def _own(events: Any) -> list[Any]:
    """Those of the thread that takes the step, and of those that it starts to compute: not what
    gloo's do meanwhile.
    """
    works = {event.thread for event in events if event.name.startswith(_WORKING)}
    main = {event.thread for event in events if event.name == "narrows::step"}
    return [event for event in events if event.thread not in works - main and not event.is_async]


def _waits(events: Any) -> dict[tuple[str, Phase, Kind], float]:
    """Seconds of each collective beyond its call. Each call has one work, made within it."""
    calls = [event for event in events if event.name in _LINKS]
    works = [event for event in events if event.name.startswith(_WORKING)]
    calls, works = (sorted(each, key=lambda e: e.time_range.start) for each in (calls, works))
    waits: dict[tuple[str, Phase, Kind], float] = {}
    for call, work in zip(calls, works, strict=False):
        if _told_in(call.cpu_parent) is not None:
            continue
        key = _told(_names(call))
        beyond = max(0.0, work.time_range.elapsed_us() - call.self_cpu_time_total)
        waits[key] = waits.get(key, 0.0) + beyond * 1e-6
    return waits


def _give(
    rows: dict[tuple[str, Phase, Kind], Row], waits: dict[tuple[str, Phase, Kind], float]
) -> None:
    """Take the waits out of the host's time, in which they are, as far as they did not pass while
    it computed.
    """
    host, waited = _SPANS["narrows::step"], sum(waits.values())
    if not waited or host not in rows:
        return
    share = min(1.0, rows[host].seconds / waited)
    for key, seconds in waits.items():
        more = seconds * share
        rows[key] = msgspec.structs.replace(rows[key], seconds=rows[key].seconds + more)
    left = rows[host].seconds - share * waited
    rows[host] = msgspec.structs.replace(rows[host], seconds=max(0.0, left))


def _told(names: list[str]) -> tuple[str, Phase, Kind]:
    """Of a collective: in which part of the step it is."""
    phase: Phase = "forward"
    if any("Backward" in name or name == "narrows::backward" for name in names):
        phase = "backward"
    elif "narrows::optimizer" in names:
        phase = "optimizer"
    elif _LINKS[names[0]] == "send" and "narrows::forward" not in names:
        # Between the passes of stages.
        phase = "other"
    return _LINKS[names[0]], phase, "link"


def _told_in(event: Any) -> Any:
    """The collective that an operation calls and waits for itself, such as parallel/collectives';
    None where it is no such operation.
    """
    if event is None or event.name.startswith(_SPANNING):
        return None
    return next((each for each in event.cpu_children if each.name in _LINKS), None)


def _names(event: Any) -> list[str]:
    """Its own and its ancestors'."""
    names = [event.name]
    parent = event.cpu_parent
    while parent is not None:
        names.append(parent.name)
        parent = parent.cpu_parent
    return names


def _row(event: Any, plan: Plan) -> Row:
    names = _names(event)
    flop = moved = 0.0
    if event.name in _PRODUCTS and "narrows::optimizer" not in names:
        operation, phase, flop, moved = _product(event, names, plan)
        kind: Kind = "gemm"
    elif (call := _told_in(event)) is not None:
        operation, phase, kind = _told(_names(call))
    else:
        operation, phase, kind = _place(names, plan)
    return Row(
        operation=operation, phase=phase, kind=kind, count=1.0, flop=flop, memory_bytes=moved,
        network_bytes=0.0, seconds=event.self_cpu_time_total * 1e-6, joules=0.0,
    )  # fmt: skip


def _product(event: Any, names: list[str], plan: Plan) -> tuple[str, Phase, float, float]:
    """Name, phase, FLOP and bytes of an (m,k) @ (k,n) product."""
    shapes = [shape for shape in event.input_shapes if len(shape) >= 2]
    (m, k), n = shapes[-2][-2:], shapes[-1][-1]
    batch = shapes[-2][0] if len(shapes[-2]) == 3 else 1
    value = 2 if plan.layout.precision == "bf16" else 4
    flop, moved = 2.0 * batch * m * k * n, float(batch * value * (m * k + k * n + m * n))
    spec, cut = plan.model, plan.layout.tensor
    rows_here = {len(range(*even(spec.vocabulary, cut, rank))) for rank in range(cut)}
    weights = {
        **{(here, spec.width): "head" for here in rows_here},
        (spec.qkv_width // cut, spec.width): "qkv",
        (spec.width, spec.heads * spec.head_width // cut): "out",
        (spec.up_width // cut, spec.width): "up",
        (spec.width, spec.feed_forward_width // cut): "down",
    }
    tokens = plan.layout.micro_batch * plan.context
    in_loss = any(loss.PROFILED in name for name in names)
    backward = any("Backward" in name for name in names)
    rows = min(tokens, plan.layout.loss_chunk) if in_loss else tokens
    if k == rows and (m, n) in weights:
        return weights[m, n], "backward", flop, moved
    if in_loss:
        return "head", "forward" if n in rows_here else "backward", flop, moved
    found = weights.get((k, n) if backward else (n, k))
    if found is None and any("_Linear" in name or "_ActivatedLinear" in name for name in names):
        # What is no matrix of the model's is of low rank, and stands beside one (adapt/low_rank).
        found = "adapter"
    return found or event.name, "backward" if backward else "forward", flop, moved


def _place(names: list[str], plan: Plan) -> tuple[str, Phase, Kind]:
    name = names[0]
    if "narrows::offload" in names:
        return _SPANS["narrows::offload"]
    if "narrows::optimizer" in names and name not in _LINKS:
        # Within a backward pass, too, where the step is fused into it.
        return plan.optimizer.operation, "optimizer", "optimizer"
    if name in _SPANS:
        return _SPANS[name]
    if name in _LINKS:
        return _told(names)
    for part, place in _SHARDS.items():
        if any(each.startswith(part) for each in names):
            return place
    if name.startswith(_SPANNING):
        return _SPANS["narrows::step"]
    backward = any("Backward" in each for each in names)
    phase: Phase = "backward" if backward else "forward"
    if any("ttention" in each or "flash" in each for each in names):
        return "attention", phase, "attention"
    if any(loss.PROFILED in each for each in names):
        return "cross_entropy", "forward", "loss"
    span = next((_SPANS[each] for each in names if each in _SPANS), None)
    if span is not None and span[1] in ("optimizer", "data"):
        return span
    for part, operation in _POINTWISE:
        if any(part in each for each in names):
            gated = isinstance(plan.model.feed_forward, SwiGLU)
            activation = "swiglu" if gated else "gelu"
            return activation if operation == "activation" else operation, phase, "pointwise"
    if name.removeprefix("aten::") in _HOST:
        return _SPANS["narrows::step"]
    return name, phase, "pointwise"


def _added(one: Row, other: Row) -> Row:
    sums = ("count", "flop", "memory_bytes", "seconds")
    return msgspec.structs.replace(
        one, **{name: getattr(one, name) + getattr(other, name) for name in sums}
    )


def _counted(row: Row, planned: Row | None, total: float) -> Row:
    """Seconds as a share; what shapes do not tell is taken from the plan's row."""
    changes: dict[str, float] = {"seconds": row.seconds / total}
    if planned is not None and row.kind != "gemm":
        changes |= {
            "count": planned.count, "flop": planned.flop, "memory_bytes": planned.memory_bytes,
            "network_bytes": planned.network_bytes,
        }  # fmt: skip
    return msgspec.structs.replace(row, **changes)
