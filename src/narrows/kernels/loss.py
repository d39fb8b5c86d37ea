"""The loss over a large vocabulary, a chunk of positions at a time: logits never exist whole.

Each chunk's gradient is taken as soon as its loss is known, so a chunk's logits live once, in the
buffer where the product put them (the idea of arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from narrows.kernels.interface import Kernels


class Head(NamedTuple):
    """Weights [V,D] and bias [V] that make logits, and c where they are capped: c · tanh(x / c)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    cap: float | None = None


def linear_cross_entropy(
    x_MD: Tensor, head_VD: Tensor, targets_M: Tensor, *, kernels: Kernels, chunk: int, scale: float
) -> Tensor:
    """Sum of the cross entropies of x Wᵀ against the targets, times `scale`; fp32.

    Call backward on the result itself: the gradient is taken on the way forward.
    """
    return head_cross_entropy(
        x_MD, Head(head_VD), targets_M, kernels=kernels, chunk=chunk, scale=scale
    )


def head_cross_entropy(
    x_MD: Tensor, head: Head, targets_M: Tensor, *, kernels: Kernels, chunk: int, scale: float
) -> Tensor:
    """The same of logits with a bias or a cap."""
    learning = any(each is not None and each.requires_grad for each in (x_MD, *head[:2]))
    loss: Tensor = _LinearCrossEntropy.apply(
        x_MD, *head, targets_M, kernels, chunk, scale, torch.is_grad_enabled() and learning
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_MD: Tensor, head_VD: Tensor, bias_V: Tensor | None, cap: float | None,
        targets_M: Tensor, kernels: Kernels, chunk: int, scale: float, needs_gradient: bool,
    ) -> Tensor:  # fmt: skip
        total = torch.zeros((), dtype=torch.float32, device=x_MD.device)
        dx, dhead, dbias = (needs_gradient and each for each in ctx.needs_input_grad[:3])
        dx_MD = torch.empty_like(x_MD) if dx else None
        dhead_VD: Tensor | None = None
        dbias_V = None if bias_V is None or not dbias else torch.zeros_like(bias_V).float()
        for first in range(0, x_MD.shape[0], chunk):
            rows = slice(first, first + chunk)
            logits_CV = x_MD[rows] @ head_VD.t()
            if bias_V is not None:
                logits_CV += bias_V
            slope_CV = None
            if cap is not None:
                logits_CV.div_(cap).tanh_()
                slope_CV = 1.0 - logits_CV.square()
                logits_CV.mul_(cap)
            total += kernels.cross_entropy_(logits_CV, targets_M[rows], scale).sum()
            if not needs_gradient:
                continue
            if slope_CV is not None:
                logits_CV.mul_(slope_CV)
            if dbias_V is not None:
                dbias_V += logits_CV.sum(0, dtype=torch.float32)
            if dx_MD is not None:
                torch.mm(logits_CV, head_VD, out=dx_MD[rows])
            if not dhead:
                continue
            if dhead_VD is None:
                dhead_VD = logits_CV.t() @ x_MD[rows]
            else:
                dhead_VD.addmm_(logits_CV.t(), x_MD[rows])
        if needs_gradient:
            rounded_V = None if dbias_V is None else dbias_V.to(x_MD.dtype)
            ctx.save_for_backward(dx_MD, dhead_VD, rounded_V)
        return total * scale

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *(_times(each, upstream[0]) for each in ctx.saved_tensors), *(None,) * 6


def _times(gradient: Tensor | None, upstream: Tensor) -> Tensor | None:
    if gradient is None:
        return None
    if upstream.device.type == "cpu" and float(upstream) == 1.0:
        return gradient
    return gradient * upstream.to(gradient.dtype)
