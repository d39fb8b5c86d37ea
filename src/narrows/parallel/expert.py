"""Expert parallelism (arXiv:2006.16668): each rank has some experts and computes all their rows.

Rows arrive sorted by expert; those of each rank's experts go there, however many they are, and what
the experts give comes back the same way. What has no room is dropped before that; where ranks have
pieces of the same sequences, these are counted together.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from narrows.kernels.interface import Kernels
from narrows.model.feed_forward import Each, Routed
from narrows.model.transformer import Transformer
from narrows.parallel.collectives import exchanged, gathered
from narrows.parallel.context import balanced, positions
from narrows.parallel.mesh import Axis, Ranks
from narrows.parallel.parts import Part
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec
from narrows.spec.pieces import even


def cut(spec: ModelSpec, parts: dict[str, Part], axis: Axis) -> None:
    """Cut `parts` in place: of experts' weights this rank's share of the experts."""
    if axis.size == 1:
        return
    if spec.experts is None:
        raise BadInput(
            f"a model without experts has none to divide among {axis.size} ranks",
            hint="layout.expert = 1",
        )
    count = spec.experts.count
    if count % axis.size:
        raise BadInput(
            f"{count} experts cannot be divided among {axis.size} ranks",
            hint=f"layout.expert = a divisor of {count}",
        )
    for name in parts:
        if ".experts.each." in name:
            parts[name] = parts[name].cut(0, even(count, axis.size, axis.rank))


def apply(model: Transformer, ranks: Ranks, layout: Layout) -> None:
    """Make `model`, whose experts are cut already, send rows to where their experts are."""
    for module in model.modules():
        if isinstance(module, Routed):
            pieces = ranks.tensor.size * ranks.context.size
            if module.experts.capacity is not None and pieces > 1:
                _count_together(module, ranks, balanced=balanced(model.spec, layout))
            if ranks.expert.size > 1:
                _apply_each(module.each, ranks.expert)


def _count_together(routed: Routed, ranks: Ranks, *, balanced: bool) -> None:
    """Fill experts in the order of whole sequences, of which this rank has a piece of a part."""
    inner = routed.kept

    def kept(chosen_BTC: Tensor) -> Tensor:
        part_BTC = gathered(chosen_BTC, ranks.tensor)
        parts_BTC = gathered(part_BTC, ranks.context)
        length = parts_BTC.shape[1]
        each = [
            positions(length, ranks.context._replace(rank=rank), balanced=balanced)
            for rank in range(ranks.context.size)
        ]
        places_T = torch.cat(each).to(chosen_BTC.device)
        whole_BTC = torch.empty_like(parts_BTC)
        whole_BTC[:, places_T] = parts_BTC
        own_BTC = inner(whole_BTC)[:, each[ranks.context.rank].to(chosen_BTC.device)]
        return own_BTC.chunk(ranks.tensor.size, dim=1)[ranks.tensor.rank]

    routed.kept = kept  # type: ignore[method-assign]


def _apply_each(each: Each, axis: Axis) -> None:
    inner = each.forward

    def spread(kernels: Kernels, x_RD: Tensor, counts_E: Tensor) -> Tensor:
        counts_PE = received(counts_E, axis)
        given, taken = rows(counts_E.view(axis.size, -1)), rows(counts_PE)
        x_SD = exchanged(x_RD, axis, given, taken)
        # They lie by the rank that they came from, and within that by expert.
        experts = torch.arange(counts_PE.shape[1], device=x_RD.device).repeat(axis.size)
        expert_S = experts.repeat_interleave(counts_PE.flatten(), output_size=x_SD.shape[0])
        order_S = expert_S.argsort(stable=True)
        y_SD = inner(kernels, x_SD[order_S], counts_PE.sum(dim=0, dtype=torch.int32))
        back_SD = torch.zeros_like(y_SD).index_copy(0, order_S, y_SD)
        return exchanged(back_SD, axis, taken, given)

    each.forward = spread  # type: ignore[method-assign]


def received(counts_E: Tensor, axis: Axis) -> Tensor:
    """How many rows each rank sends to each of this rank's experts."""
    counts_E = counts_E.contiguous()
    found_E = torch.empty_like(counts_E)
    dist.all_to_all_single(found_E, counts_E, group=axis.group)
    return found_E.view(axis.size, -1)


def rows(counts_PE: Tensor) -> list[int]:
    """How many go to, or come from, each rank: what the host waits for."""
    found: list[int] = counts_PE.sum(dim=1).tolist()
    return found
