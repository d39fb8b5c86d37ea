"""What one process computes, sends and keeps, counted operation by operation as it runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from narrows.parallel.kept import Kept
from narrows.parallel.mesh import Ranks
from narrows.spec.layout import Layout
from narrows.spec.model import Experts
from narrows.spec.trace import AxisName, Collective, Traffic

aten, c10d = torch.ops.aten, torch.ops.c10d
# Of each collective: its kind, the argument that is the whole, that of the group.
_COLLECTIVES: dict[Any, tuple[Collective, int, int]] = {
    c10d._allgather_base_.default: ("gather", 0, 2),
    c10d._reduce_scatter_base_.default: ("scatter", 1, 2),
    c10d.allreduce_.default: ("sum", 0, 1),
    c10d.alltoall_base_.default: ("exchange", 1, 2),
    c10d.send.default: ("send", 0, 1),
}
_SILENT = {c10d.recv_.default, c10d.barrier.default}
Counts = dict[Any, float]
AxisOf = dict[Collective, dict[str, AxisName]]


def traffic(counts: Counts) -> tuple[Traffic, ...]:
    """The collectives among what was counted."""
    keys = sorted(key[1:] for key in counts if key[0] == "count")
    return tuple(
        Traffic(
            axis=axis, kind=kind, count=counts["count", axis, kind],
            bytes=counts["bytes", axis, kind],
        )
        for axis, kind in keys
    )  # fmt: skip


def axes(ranks: Ranks, layout: Layout) -> AxisOf:
    """The axis of each group of processes, by its name and the kind of collective. Torch has one
    group of all processes for whatever axes they are on: of those that a kind is used along, the
    first here has it.
    """
    data: list[tuple[AxisName, str]] = []
    for mesh in (ranks.shared_mesh, ranks.expert_mesh):
        for name in () if mesh is None else mesh.mesh_dim_names or ():
            assert mesh is not None
            copies = name == "replicas" and layout.sharding != "none"
            data.append(("replicas" if copies else "data", mesh.get_group(name).group_name))
    known: tuple[tuple[AxisName, dist.ProcessGroup | None], ...] = (
        ("tensor", ranks.tensor.group), ("context", ranks.context.group),
        ("pipeline", ranks.pipeline.group), ("expert", ranks.expert.group),
        ("data", ranks.batches.group), ("data", ranks.near.group),
    )  # fmt: skip
    single = [[] if g is None else [(axis, str(g.group_name))] for axis, g in known]

    def named(*several: list[tuple[AxisName, str]]) -> dict[str, AxisName]:
        return {group: axis for each in reversed(several) for axis, group in reversed(each)}

    tensor, context, pipeline, expert, batches, near = single
    reduced = named(tensor, data, batches, near, context, pipeline)
    return {
        "gather": reduced, "scatter": reduced, "sum": reduced,
        "exchange": named(expert, context), "send": named(context, pipeline),
    }  # fmt: skip


class Counting(TorchDispatchMode):
    """Counts FLOP, collectives by axis and kind, and memory of what runs within it. Of fake tensors
    it knows what cannot be read: `experts` are chosen equally often.
    """

    def __init__(self, axis_of: AxisOf, experts: Experts | None = None) -> None:
        super().__init__()
        self.axis_of = axis_of
        self.kept_share = min(1.0, (experts and experts.capacity) or 1.0)
        self.counts: Counts = defaultdict(float)
        self.kept = Kept()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A DTensor's operations come again, as those of the part that is here.
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        kwargs = kwargs or {}
        fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
        found = self._unread(func, args) if fake else None
        found = func(*args, **kwargs) if found is None else found
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

    def _unread(self, func: Any, args: Any) -> Any:
        """What stands for a result that hangs on numbers, or that fake tensors know of bf16 alone;
        None of all others.
        """
        if func is aten._local_scalar_dense.default:
            # What losses are divided by.
            return 1
        if func is aten._grouped_mm.default:
            left, right, ends = args[:3]
            rows = left.shape[:1] if right.ndim == 3 else (ends.shape[0], left.shape[0])
            return left.new_empty(*rows, right.shape[-1])
        mask = args[1][0] if func is aten.index.Tensor else None
        if mask is not None and mask.dtype == torch.bool:
            return args[0].new_empty(int(self.kept_share * args[0].shape[0]))
        return None

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
        axis = self.axis_of[kind][among.group_name]
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
