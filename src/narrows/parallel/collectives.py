"""Collectives that gradients flow through: each is the other's backward pass.

Sequences lie along dimension 1 of [B,T,D], rows along dimension 0. A group of None is one rank, for
which all of them are the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from narrows.parallel.mesh import Axis


def copied(x: Tensor, axis: Axis) -> Tensor:
    """x to ranks that each compute a part of what follows; their gradients are summed."""
    return x if axis.group is None else _Copied.apply(x, axis)


def summed(x: Tensor, axis: Axis) -> Tensor:
    """The ranks' parts added up."""
    return x if axis.group is None else _Summed.apply(x, axis)


def gathered(x_BtD: Tensor, axis: Axis) -> Tensor:
    """The ranks' sequences joined, for ranks that each compute a part of what follows."""
    return x_BtD if axis.group is None else _Gathered.apply(x_BtD, axis)


def scattered(x_BTD: Tensor, axis: Axis) -> Tensor:
    """The ranks' parts added up, and of the sum each its own piece of the sequence."""
    return x_BTD if axis.group is None else _Scattered.apply(x_BTD, axis)


def sliced(x_BTD: Tensor, axis: Axis) -> Tensor:
    """Of what all ranks have alike, each its own piece of the sequence."""
    return x_BTD if axis.group is None else _Sliced.apply(x_BTD, axis)


def exchanged(
    x_RX: Tensor, axis: Axis, given: Sequence[int] | None = None,
    taken: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """To each rank the next `given` rows, from each `taken` of them; equal numbers where None."""
    return x_RX if axis.group is None else _Exchanged.apply(x_RX, axis, given, taken)


def add_up(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the ranks, in place; no gradient."""
    if axis.group is not None:
        dist.all_reduce(x, group=axis.group)
    return x


def most(x: Tensor, axis: Axis) -> Tensor:
    """The largest over the ranks, in place; no gradient."""
    if axis.group is not None:
        dist.all_reduce(x, dist.ReduceOp.MAX, group=axis.group)
    return x


def _join(x: Tensor, axis: Axis) -> Tensor:
    out = x.new_empty(axis.size * x.shape[0], *x.shape[1:])
    dist.all_gather_single(out, x.contiguous(), group=axis.group)
    return torch.cat(out.chunk(axis.size), dim=1)


def _sum_and_part(x: Tensor, axis: Axis) -> Tensor:
    pieces = torch.cat(x.chunk(axis.size, dim=1)).contiguous()
    out = pieces.new_empty(x.shape[0], *pieces.shape[1:])
    dist.reduce_scatter_single(out, pieces, group=axis.group)
    return out


def _trade(
    x: Tensor, axis: Axis, given: Sequence[int] | None, taken: Sequence[int] | None
) -> Tensor:
    out = x.new_empty(x.shape[0] if taken is None else sum(taken), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), taken, given, group=axis.group)
    return out


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return add_up(upstream[0].contiguous().clone(), ctx.axis), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return add_up(x.contiguous().clone(), axis)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _join(x, axis)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return _sum_and_part(upstream[0], ctx.axis), None


class _Scattered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _sum_and_part(x, axis)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return _join(upstream[0], ctx.axis), None


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        # Of a single sequence a piece is contiguous as it is: a view would keep all of x.
        piece = x.chunk(axis.size, dim=1)[axis.rank]
        return piece.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return _join(upstream[0], ctx.axis), None


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axis: Axis, given: Sequence[int] | None, taken: Sequence[int] | None
    ) -> Tensor:
        ctx.settings = axis, taken, given
        return _trade(x, axis, given, taken)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        return _trade(upstream[0], *ctx.settings), None, None, None
