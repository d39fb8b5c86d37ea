"""Attention over a sequence that lies in parts on several ranks: ring attention (arXiv:2310.01889).

Keys and values go from rank to rank while each rank attends to those that it holds; what the parts
give is merged by the logarithms of their sums of exponentials (arXiv:2205.14135). Of causal models
rank r has pieces r and 2c-1-r of 2c, so that beyond its own part a rank meets either all queries
with the first half of the keys, or the second half of the queries with all keys: no mask, and as
much work for each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from narrows.parallel.mesh import Axis


class Block(NamedTuple):
    """Which rows and columns of a part's scores are computed; of a `diagonal` block the lower
    triangle.
    """

    queries: slice
    keys: slice
    diagonal: bool


class Kernel(NamedTuple):
    """How a block is computed: by torch's flash kernel or openly, and the scale of its scores."""

    flash: str | None
    scale: float

    @staticmethod
    def of(q_BNTH: Tensor, v_BKSH: Tensor, scale: float | None) -> Kernel:
        """The fastest that takes such heads; the processor's has keys and values of one width, the
        accelerator's half precision and widths of eight.
        """
        H, same = q_BNTH.shape[-1], q_BNTH.shape[-1] == v_BKSH.shape[-1]
        scale = H**-0.5 if scale is None else scale
        narrow = q_BNTH.dtype in (torch.float16, torch.bfloat16) and H % 8 == 0 and H <= 256
        device = q_BNTH.device.type
        fits = same and (device == "cpu" or (device == "cuda" and narrow))
        return Kernel(device if fits else None, scale)


def ring(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, axis: Axis, *, causal: bool,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Weighted values [B,N,t,H] of this rank's queries over all ranks' keys."""
    given = (q_BNTH, k_BKTH.contiguous(), v_BKTH.contiguous())
    out_BNTH: Tensor = _Ring.apply(*given, axis, causal, scale)
    return out_BNTH


def merge_(out_BNTH: Tensor, sums_BNT: Tensor, other_BNTH: Tensor, others_BNT: Tensor) -> None:
    """Make of what one set of keys gave, and the logarithms of its sums of exponentials, that of
    two sets, in place and in fp32.
    """
    share_BNT1 = (others_BNT - sums_BNT).sigmoid().unsqueeze(-1)
    out_BNTH.lerp_(other_BNTH.float(), share_BNT1)
    sums_BNT.copy_(torch.logaddexp(sums_BNT, others_BNT))


def block_of(step: int, length: int, axis: Axis, *, causal: bool) -> Block:
    """What this rank computes with the part, of `length`, that it holds after `step` passes."""
    every, half = slice(0, length), length // 2
    if not causal or step == 0:
        return Block(every, every, causal)
    if step <= axis.rank:
        return Block(every, slice(0, half), False)
    return Block(slice(half, length), every, False)


def attention(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, kernel: Kernel, *, diagonal: bool
) -> tuple[Tensor, Tensor]:
    """Weighted values [B,N,T,H], and the logarithms of the sums of exponentials [B,N,T] fp32."""
    aten = torch.ops.aten
    if kernel.flash == "cpu":
        found = aten._scaled_dot_product_flash_attention_for_cpu(
            q_BNTH, k_BKSH, v_BKSH, 0.0, diagonal, scale=kernel.scale
        )
        return found[0], found[1]
    if kernel.flash == "cuda":
        found = aten._scaled_dot_product_flash_attention(
            q_BNTH, k_BKSH, v_BKSH, 0.0, diagonal, False, scale=kernel.scale
        )
        return found[0], found[1]
    scores_BNTS = _scores(q_BNTH, _wide(k_BKSH, q_BNTH), kernel.scale, diagonal=diagonal)
    sums_BNT = scores_BNTS.logsumexp(dim=-1)
    weights_BNTS = (scores_BNTS - sums_BNT.unsqueeze(-1)).exp()
    return (weights_BNTS @ _wide(v_BKSH, q_BNTH)).to(q_BNTH.dtype), sums_BNT


class Outcome(NamedTuple):
    """What came of all keys, and the gradient with respect to it; rows as the queries'."""

    out: Tensor
    sums: Tensor
    upstream: Tensor

    def rows(self, which: slice) -> Outcome:
        """Some queries'."""
        return Outcome(*(each[:, :, which] for each in self))


def attention_backward(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, outcome: Outcome, kernel: Kernel, *,
    diagonal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values through one block of many."""
    out_BNTH, sums_BNT, upstream_BNTH = outcome
    aten = torch.ops.aten
    if kernel.flash == "cpu":
        q, k, v = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            upstream_BNTH, q_BNTH, k_BKSH, v_BKSH, out_BNTH, sums_BNT, 0.0, diagonal,
            scale=kernel.scale,
        )  # fmt: skip
        return q, k, v
    if kernel.flash == "cuda":
        unused = torch.zeros(2, dtype=torch.int64, device=q_BNTH.device)
        q, k, v = aten._scaled_dot_product_flash_attention_backward(
            upstream_BNTH, q_BNTH, k_BKSH, v_BKSH, out_BNTH, sums_BNT, None, None,
            q_BNTH.shape[2], k_BKSH.shape[2], 0.0, diagonal, unused, unused, scale=kernel.scale,
        )  # fmt: skip
        return q, k, v
    wide_BNSH, upstream_BNTH = _wide(k_BKSH, q_BNTH), upstream_BNTH.float()
    scores_BNTS = _scores(q_BNTH, wide_BNSH, kernel.scale, diagonal=diagonal)
    weights_BNTS = (scores_BNTS - sums_BNT.unsqueeze(-1)).exp()
    v_BNSH = weights_BNTS.transpose(-1, -2) @ upstream_BNTH
    mean_BNT1 = (upstream_BNTH * out_BNTH.float()).sum(dim=-1, keepdim=True)
    weights_BNTS *= upstream_BNTH @ _wide(v_BKSH, q_BNTH).transpose(-1, -2) - mean_BNT1
    weights_BNTS *= kernel.scale
    k_BNSH = weights_BNTS.transpose(-1, -2) @ q_BNTH.float()
    K = k_BKSH.shape[1]
    return (
        weights_BNTS @ wide_BNSH,
        k_BNSH.unflatten(1, (K, -1)).sum(dim=2), v_BNSH.unflatten(1, (K, -1)).sum(dim=2),
    )  # fmt: skip


class _Passing(NamedTuple):
    """Tensors on their way from the rank before, while this rank's go to the next."""

    coming: list[Tensor]
    works: list[dist.Work]

    @staticmethod
    def begin(tensors: list[Tensor], axis: Axis, *, tag: int) -> _Passing:
        coming = [torch.empty_like(each) for each in tensors]
        before, behind = (axis.rank - 1) % axis.size, (axis.rank + 1) % axis.size
        # First what comes: gloo asks for it behind what goes the same way.
        operations = [
            dist.P2POp(what, tensor, None, axis.group, tag + index, rank)
            for what, rank, ones in ((dist.irecv, before, coming), (dist.isend, behind, tensors))
            for index, tensor in enumerate(ones)
        ]
        return _Passing(coming, dist.batch_isend_irecv(operations))

    def arrived(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.coming


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, axis: Axis, causal: bool,
        scale: float | None,
    ) -> Tensor:  # fmt: skip
        kernel, length = Kernel.of(q_BNTH, v_BKTH, scale), q_BNTH.shape[2]
        held = [k_BKTH, v_BKTH]
        for step in range(axis.size):
            passing = _Passing.begin(held, axis, tag=0) if step + 1 < axis.size else None
            rows, columns, diagonal = block_of(step, length, axis, causal=causal)
            k_BKSH, v_BKSH = (each[:, :, columns] for each in held)
            part = attention(q_BNTH[:, :, rows], k_BKSH, v_BKSH, kernel, diagonal=diagonal)
            if step == 0:
                out_BNTH, sums_BNT = part[0].float(), part[1]
            else:
                merge_(out_BNTH[:, :, rows], sums_BNT[:, :, rows], *part)
            if passing is not None:
                held = passing.arrived()
        out_BNTH = out_BNTH.to(q_BNTH.dtype)
        ctx.save_for_backward(q_BNTH, k_BKTH, v_BKTH, out_BNTH, sums_BNT)
        ctx.settings = axis, causal, kernel
        return out_BNTH

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        axis, causal, kernel = ctx.settings
        q_BNTH, k_BKTH, v_BKTH, out_BNTH, sums_BNT = ctx.saved_tensors
        outcome = Outcome(out_BNTH, sums_BNT, upstream[0])
        held, length = [k_BKTH, v_BKTH], q_BNTH.shape[2]
        dq_BNTH = torch.zeros_like(q_BNTH, dtype=torch.float32)
        # The gradients of the keys and values that are held; they travel with them, and come home.
        sums = [torch.zeros_like(each, dtype=torch.float32) for each in held]
        travelling: _Passing | None = None
        for step in range(axis.size):
            passing = _Passing.begin(held, axis, tag=0) if step + 1 < axis.size else None
            rows, columns, diagonal = block_of(step, length, axis, causal=causal)
            k_BKSH, v_BKSH = (each[:, :, columns] for each in held)
            q, *others = attention_backward(
                q_BNTH[:, :, rows], k_BKSH, v_BKSH, outcome.rows(rows), kernel, diagonal=diagonal
            )
            dq_BNTH[:, :, rows] += q
            if travelling is not None:
                sums = travelling.arrived()
            for total, own in zip(sums, others, strict=True):
                total[:, :, columns] += own
            travelling = _Passing.begin(sums, axis, tag=len(held))
            if passing is not None:
                held = passing.arrived()
        assert travelling is not None
        dk_BKTH, dv_BKTH = travelling.arrived()
        like = q_BNTH.dtype
        return dq_BNTH.to(like), dk_BKTH.to(like), dv_BKTH.to(like), None, None, None


def _scores(q_BNTH: Tensor, k_BNSH: Tensor, scale: float, *, diagonal: bool) -> Tensor:
    scores_BNTS = (q_BNTH.float() @ k_BNSH.transpose(-1, -2)) * scale
    if not diagonal:
        return scores_BNTS
    later_TS = torch.ones(scores_BNTS.shape[-2:], dtype=torch.bool, device=scores_BNTS.device)
    return scores_BNTS.masked_fill(later_TS.triu(1), -torch.inf)


def _wide(x_BKSH: Tensor, q_BNTH: Tensor) -> Tensor:
    """Keys or values once for each query head, fp32."""
    return x_BKSH.float().repeat_interleave(q_BNTH.shape[1] // x_BKSH.shape[1], dim=1)
