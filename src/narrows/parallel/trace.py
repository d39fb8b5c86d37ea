"""One rank's step of a layout of any size, on tensors that have shapes and no memory.

The model that this process would have among thousands is really built and really run: torch's fake
process group answers for the others, fake tensors for the numbers. What the step computes, sends
and keeps is counted on the way; plan/fleet/beside.py holds it against the plan.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from narrows.kernels.load import load
from narrows.model.transformer import Wrapper
from narrows.parallel.kept import Kept
from narrows.parallel.mesh import Ranks, ranks_of
from narrows.parallel.running import Beside
from narrows.parallel.split import Making, Split, local, split
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.ledger import MemoryPeak
from narrows.spec.model import ModelSpec
from narrows.spec.trace import AxisName, Collective, Trace, Traffic

aten, c10d = torch.ops.aten, torch.ops.c10d
_CPU = torch.device("cpu")
# Micro-batches that are run: the first and the last differ from those between, which are alike.
_RUN = 3
_STATE_BYTES = 12
"""Of a parameter, in the optimizer: a master and two moments in fp32."""
# Of each collective: its kind, the argument that is the whole, that of the group.
_COLLECTIVES: dict[Any, tuple[Collective, int, int]] = {
    c10d._allgather_base_.default: ("gather", 0, 2),
    c10d._reduce_scatter_base_.default: ("scatter", 1, 2),
    c10d.allreduce_.default: ("sum", 0, 1),
    c10d.alltoall_base_.default: ("exchange", 1, 2),
    c10d.send.default: ("send", 0, 1),
}
_SILENT = {c10d.recv_.default, c10d.barrier.default}
_Counts = dict[Any, float]


def trace(spec: ModelSpec, layout: Layout, *, rank: int = 0) -> Trace:
    """What process `rank` of the layout does in a step; raises BadInput where `parallel` cannot
    run it.
    """
    _refuse(spec, layout)
    began = time.perf_counter()
    dtype = torch.bfloat16 if layout.precision == "bf16" else torch.float32
    making = Making(load("torch"), wrapper(layout), _CPU, dtype)
    with _alone_among(layout.processes, rank), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ranks = ranks_of(layout, _CPU)
        mine = split(spec, layout, ranks, making, seed=None)
        with FakeTensorMode(allow_non_fake_inputs=True):
            mine.model.to_empty(device=_CPU)
            counting = Counting(axes(ranks, layout))
            counts = step(mine, counting)
            memory, makers = _memory(mine, counting.kept)
            most = counting.kept.most()
    return Trace(
        rank=rank, products=counts["products"], scores=counts["scores"],
        traffic=traffic(counts), memory=memory, makers=makers, most=most,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def traffic(counts: _Counts) -> tuple[Traffic, ...]:
    """The collectives among what was counted."""
    keys = sorted(key[1:] for key in counts if key[0] == "count")
    return tuple(
        Traffic(
            axis=axis, kind=kind, count=counts["count", axis, kind],
            bytes=counts["bytes", axis, kind],
        )
        for axis, kind in keys
    )  # fmt: skip


def axes(ranks: Ranks, layout: Layout) -> dict[str, AxisName]:
    """The axis of each group of processes, by the group's name. Torch has one group of all
    processes for whatever axis they are on: that of the first here is its name.
    """
    found: dict[str, AxisName] = {}
    named: dict[AxisName, dist.ProcessGroup | None] = {
        "tensor": ranks.tensor.group, "context": ranks.context.group,
        "pipeline": ranks.pipeline.group, "expert": ranks.expert.group,
    }  # fmt: skip
    for axis, group in named.items():
        if group is not None:
            found.setdefault(group.group_name, axis)
    for mesh in (ranks.shared_mesh, ranks.expert_mesh):
        for name in () if mesh is None else mesh.mesh_dim_names or ():
            assert mesh is not None
            copies = name == "replicas" and layout.sharding != "none"
            found.setdefault(mesh.get_group(name).group_name, "replicas" if copies else "data")
    for reading in (ranks.batches, ranks.near):
        if reading.group is not None:
            found.setdefault(reading.group.group_name, "data")
    return found


class Counting(TorchDispatchMode):
    """Counts FLOP, collectives by axis and kind, and memory of what runs within it."""

    def __init__(self, axis_of: dict[str, AxisName]) -> None:
        super().__init__()
        self.axis_of = axis_of
        self.counts: _Counts = defaultdict(float)
        self.kept = Kept()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A DTensor's operations come again, as those of the part that is here.
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        kwargs = kwargs or {}
        fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
        if fake and func is aten._local_scalar_dense.default:
            # A number that the program reads: what losses are divided by.
            return 1
        found = func(*args, **kwargs)
        for each in found if isinstance(found, (list, tuple)) else (found,):
            if isinstance(each, Tensor):
                self.kept.see(each, func.name())
        if func.namespace == "c10d":
            self._sent(func, args)
        elif func in _SCORES:
            self.counts["scores"] += _SCORES[func](args, kwargs)
        elif (formula := _formula(func)) is not None:
            kind = "scores" if func._overloadpacket is aten.bmm else "products"
            self.counts[kind] += formula(*args, **kwargs, out_val=found)
        return found

    def _sent(self, func: Any, args: Any) -> None:
        if func in _SILENT:
            return
        kind, whole, group = _COLLECTIVES[func]
        among = dist.ProcessGroup.unbox(args[group])
        n = among.size()
        if n == 1:
            return
        tensors = args[whole] if isinstance(args[whole], (list, tuple)) else [args[whole]]
        size = sum(each.numel() * each.element_size() for each in tensors)
        share = {"sum": 2.0 * (n - 1) / n, "send": 1.0}.get(kind, (n - 1) / n)
        axis = self.axis_of[among.group_name]
        self.counts["count", axis, kind] += 1
        self.counts["bytes", axis, kind] += size * share


def _in_place(_total: Tensor, left: Tensor, right: Tensor, **_: Any) -> int:
    return 2 * left.shape[0] * left.shape[1] * right.shape[1]


def _by_expert(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    # [R,D] by [E,D,F], or backward [D,R] by [R,F] into [E,D,F].
    return 2 * left.shape[0] * left.shape[1] * right.shape[-1]


_PRODUCTS: dict[Any, Callable[..., int]] = {
    aten.addmm_: _in_place, aten._grouped_mm: _by_expert,
    **{each: flop_registry[each] for each in (aten.mm, aten.addmm, aten.bmm)},
}  # fmt: skip


def _formula(func: Any) -> Callable[..., int] | None:
    return _PRODUCTS.get(getattr(func, "_overloadpacket", None))


def _seen(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, causal: bool) -> float:
    """FLOP of one product with keys and one with values, of the keys that are seen."""
    B, N, T, H = q_BNTH.shape
    S = k_BKSH.shape[2]
    keys = (S + 1) / 2 if causal and T == S else S
    return 2.0 * B * N * T * keys * (H + v_BKSH.shape[-1])


def _forward(args: Any, kwargs: Any) -> float:
    return _seen(args[0], args[1], args[2], len(args) > 4 and args[4])


def _backward(args: Any, kwargs: Any) -> float:
    # Scores are made again: five products for two.
    return 2.5 * _seen(args[1], args[2], args[3], len(args) > 7 and args[7])


_SCORES: dict[Any, Callable[[Any, Any], float]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _backward,
}


def step(mine: Split, counting: Counting) -> _Counts:
    """Counts of a whole step, from its first micro-batches and its last."""
    layout, T = mine.layout, mine.model.spec.context
    seen: list[_Counts] = []

    micros = min(layout.accumulation, _RUN)
    kept, parameters = counting.kept, mine.parameters().values()

    late = micros > 1 and (layout.sharding in ("none", "optimizer") or layout.replicas > 1)

    def after() -> None:
        seen.append(counting.counts.copy())
        if not late:
            for parameter in parameters:
                if parameter.grad is not None:
                    kept.name("gradients", local(parameter.grad))
        elif len(seen) < micros:
            # Gradients wait for the last micro-batch's sum where no parameter shows them.
            kept.name_all("gradients")

    for parameter in parameters:
        kept.name("weights", local(parameter))
    tokens_BT = torch.zeros(micros * layout.micro_batch, T + 1, dtype=torch.int64)
    with kept.growing(), counting:
        mine.run(tokens_BT, layout.loss_chunk, Beside(after=after))
        gradients = {
            name: local(parameter.grad)
            for name, parameter in mine.parameters().items()
            if parameter.grad is not None
        }
        mine.complete(gradients)
    counts = counting.counts.copy()
    between = layout.accumulation - micros
    for name in seen[1] if between else ():
        counts[name] += between * (seen[1][name] - seen[0].get(name, 0.0))
    return counts


def _memory(mine: Split, kept: Kept) -> tuple[MemoryPeak, dict[str, float]]:
    """At the worst moment, with the optimizer's state, which is always there."""
    running, makers = kept.peak()
    own = sum(local(parameter).numel() for parameter in mine.parameters().values())
    optimizer = float(_STATE_BYTES * own)
    total = running.peak + optimizer
    return msgspec.structs.replace(running, optimizer=optimizer, peak=total), makers


@contextmanager
def _alone_among(count: int, rank: int) -> Iterator[None]:
    """This process as one of `count`, the others of which only seem to be there."""
    if count == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrapper(layout: Layout) -> Wrapper | None:
    """What a traced block is wrapped in."""
    if layout.recompute == "none":
        return None
    return lambda block: lambda *args: checkpoint(block, *args, use_reentrant=False)


def _refuse(spec: ModelSpec, layout: Layout) -> None:
    for name in ("pipeline", "context", "expert"):
        if getattr(layout, name) > 1:
            raise BadInput(
                f"{name} ranks cannot be traced yet, and the layout has {getattr(layout, name)}",
                hint=f"--set layout.{name}=1",
            )
    if spec.encoder_layers:
        raise BadInput(
            "an encoder beside the decoder cannot be traced yet",
            hint="a model of one stack, such as --model llama-3.1-8b",
        )
