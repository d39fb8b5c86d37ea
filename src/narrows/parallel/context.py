"""Context parallelism: each rank has a part of every sequence; parts meet in attention alone.

With `ring` keys and values go around (see `ring`). With `all_to_all` (arXiv:2309.14509) ranks trade
their positions of all heads for all positions of some heads, and back; so any mask will do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from narrows.kernels.interface import Rotation
from narrows.model.attention import Cache, Scores
from narrows.model.block import Block
from narrows.model.transformer import Transformer
from narrows.parallel.collectives import exchanged
from narrows.parallel.mesh import Axis
from narrows.parallel.ring import ring
from narrows.plan.processes import refuse_whole
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.model import Alibi, ModelSpec, Relative


def positions(length: int, axis: Axis, *, balanced: bool) -> Tensor:
    """Where in a sequence of `length` this rank's part stands: one piece, or where `balanced` the
    rank-th piece from either end, with as many keys before them on every rank.
    """
    pieces = axis.size * (2 if balanced else 1)
    if length % pieces:
        raise BadInput(
            f"a sequence of {length} cannot be cut into {pieces} pieces for {axis.size} ranks",
            hint=f"make it a multiple of {pieces}, or lower layout.context",
        )
    cut = torch.arange(length).chunk(pieces)
    return torch.cat([cut[axis.rank], cut[-1 - axis.rank]]) if balanced else cut[axis.rank]


def balanced(spec: ModelSpec, layout: Layout) -> bool:
    """Whether a part is two pieces: where ranks attend for their own queries alone, causally."""
    return spec.causal and layout.exchange == "ring"


def share(
    given: tuple[Tensor, Tensor], axis: Axis, spec: ModelSpec, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Of what is read of whole sequences and what is to be said [B,T], this rank's [B,t]."""
    own = positions(given[0].shape[1], axis, balanced=balanced(spec, layout))
    inputs_BT, targets_BT = (each[:, own.to(each.device)].contiguous() for each in given)
    return inputs_BT, targets_BT


def apply(model: Transformer, axis: Axis, layout: Layout) -> None:
    """Make `model`, whose heads are divided among tensor ranks already, compute this rank's part
    of sequences.
    """
    if axis.size == 1:
        return
    _refuse(model.spec, axis, layout)
    learned, rotation, mask, numbers = (
        model._learned, model._rotation, model._mask, model._numbers
    )  # fmt: skip

    def own(count: int, device: torch.device) -> Tensor:
        return positions(count * axis.size, axis, balanced=balanced(model.spec, layout)).to(device)

    def whole(span: tuple[int, int]) -> tuple[int, int]:
        return span[0], span[1] * axis.size

    def own_learned(start: int, count: int) -> Tensor:
        rows_TD = learned(*whole((start, count)))
        return rows_TD[own(count, rows_TD.device)]

    def own_rotation(
        start: int, count: int, device: torch.device, *, windowed: bool = False
    ) -> Rotation | None:
        found = rotation(*whole((start, count)), device, windowed=windowed)
        return found and Rotation(*(each[own(count, device)] for each in found))

    def whole_mask(span: tuple[int, int], like: Tensor, window: int | None) -> Tensor | None:
        return mask(whole(span), like, window)

    def own_numbers(span: tuple[int, int], like: Tensor) -> Tensor | None:
        numbers_BT = numbers(whole(span), like)
        return None if numbers_BT is None else numbers_BT[:, own(span[1], like.device)]

    model._learned = own_learned  # type: ignore[method-assign]
    model._rotation = own_rotation  # type: ignore[method-assign]
    model._mask = whole_mask  # type: ignore[method-assign]
    model._numbers = own_numbers  # type: ignore[method-assign]
    for block in model.blocks.children():
        assert isinstance(block, Block)
        _apply_block(block, axis, layout)


def _apply_block(block: Block, axis: Axis, layout: Layout) -> None:
    inner = block.attend

    def pass_around(
        q_BNTH: Tensor, past: Cache, scores: Scores, mask: Tensor | None = None,
        sinks_N: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert mask is None and sinks_N is None and scores.cap is None
        return ring(q_BNTH, *past, axis, causal=scores.causal, scale=scores.scale)

    def trade(
        q_BNTH: Tensor, past: Cache, scores: Scores, mask: Tensor | None = None,
        sinks_N: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        each = q_BNTH.shape[1] // axis.size
        own = slice(axis.rank * each, (axis.rank + 1) * each)
        if mask is not None and mask.ndim == 3:
            mask = mask[own]
        q_BnSH, k_BkSH, v_BkSH = _heads_for_positions([q_BNTH, *_repeated(past, axis)], axis)
        sinks_N = None if sinks_N is None else sinks_N[own]
        out_BnSH = inner(q_BnSH, Cache(k_BkSH, v_BkSH), scores, mask, sinks_N)
        return _positions_for_heads(out_BnSH, axis)

    if layout.exchange == "all_to_all" and block.heads.query % axis.size:
        raise BadInput(
            f"{block.heads.query} heads cannot be dealt to {axis.size} context ranks",
            hint=f'layout.context = a divisor of {block.heads.query}, or layout.exchange = "ring"',
        )
    block.attend = pass_around if layout.exchange == "ring" else trade
    block.fused = False


def _repeated(past: Cache, axis: Axis) -> Cache:
    """Keys and values of as many heads as can be dealt out: of fewer, each to several ranks."""
    heads = past.keys_BKSH.shape[1]
    times = math.lcm(heads, axis.size) // heads
    return past if times == 1 else Cache(*(x.repeat_interleave(times, dim=1) for x in past))


def _heads_for_positions(tensors: list[Tensor], axis: Axis) -> list[Tensor]:
    """Of each [B,N,t,H], all positions of this rank's share of heads [B,N/c,T,H]."""
    dealt = [x.unflatten(1, (axis.size, -1)).movedim(1, 0) for x in tensors]
    given = torch.cat([x.flatten(1) for x in dealt], dim=1)
    taken = exchanged(given, axis).split([x[0].numel() for x in dealt], dim=1)
    return [
        rows.view(x.shape).movedim(0, 2).flatten(2, 3)
        for rows, x in zip(taken, dealt, strict=True)
    ]  # fmt: skip


def _positions_for_heads(x_BnSH: Tensor, axis: Axis) -> Tensor:
    """Of [B,N/c,T,H], this rank's positions of all heads [B,N,t,H]."""
    given = x_BnSH.unflatten(2, (axis.size, -1)).movedim(2, 0)
    return exchanged(given, axis).movedim(0, 1).flatten(1, 2)


def _refuse(spec: ModelSpec, axis: Axis, layout: Layout) -> None:
    refuse_whole(spec, "context", axis.size)
    positions(spec.context, axis, balanced=balanced(spec, layout))
    windows = [spec.window_of(layer) for layer in range(spec.layers)]
    reasons = {
        "windows": any(size is not None and size < spec.context for size in windows),
        "positions that are added to scores": isinstance(spec.positions, Alibi | Relative),
        "capped scores": spec.score_cap is not None,
        "sinks": spec.sinks,
    }
    for reason, there in reasons.items():
        if there and layout.exchange == "ring":
            raise BadInput(
                f"a ring of context ranks knows no {reason}",
                hint='layout.exchange = "all_to_all"',
            )
