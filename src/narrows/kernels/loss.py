"""The loss over a large vocabulary, a chunk of positions at a time: logits never exist whole.

Each chunk's gradient is taken as soon as its loss is known, so a chunk's logits live once, in the
buffer where the product put them (the idea of arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
    return weighted_cross_entropy(
        x_MD, head, Targets(targets_M), kernels=kernels, chunk=chunk, scale=scale
    )


class Targets(NamedTuple):
    """Of each row the token to be said, negative where none is, and what its loss counts [M]."""

    tokens_M: Tensor
    weights_M: Tensor | None = None


def weighted_cross_entropy(
    x_MD: Tensor, head: Head, targets: Targets, *, kernels: Kernels, chunk: int, scale: float
) -> Tensor:
    """The same with each row's cross entropy times its weight."""
    return _judged(x_MD, head, partial(_cross_entropy_, targets, kernels, scale), chunk, scale)


@torch.no_grad()
def token_losses(
    x_MD: Tensor, head: Head, targets_M: Tensor, *, kernels: Kernels, chunk: int
) -> Tensor:
    """The cross entropy of each row [M], fp32, 0 where nothing is to be said; without gradient."""
    pieces = zip(x_MD.split(chunk), targets_M.split(chunk), strict=True)
    return torch.cat(
        [kernels.cross_entropy_(_logits(x_CD, head), own_C, 1.0) for x_CD, own_C in pieces]
    )


class Teacher(NamedTuple):
    """A teacher's last hidden states [M,D] and head; its logits count divided by a temperature, and
    the divergence from them for a share of the loss.
    """

    x_MD: Tensor
    head: Head
    temperature: float
    share: float


def distillation(
    x_MD: Tensor, head: Head, teacher: Teacher, targets_M: Tensor, *, chunk: int, scale: float
) -> Tensor:
    """Sum over rows with a target of (1 - share) · cross entropy + share · t² · KL(teacher ‖ us),
    times `scale` (arXiv:1503.02531, section 2); fp32. Backward as of `linear_cross_entropy`.
    """
    return _judged(x_MD, head, partial(_divergence_, teacher, targets_M, scale), chunk, scale)


Judge = Callable[[Tensor, slice], Tensor]
"""Of a chunk's logits, which are these rows: each one's loss [C]; puts the gradient of their sum,
scaled, in the logits' place.
"""


def _cross_entropy_(
    targets: Targets, kernels: Kernels, scale: float, logits_CV: Tensor, rows: slice
) -> Tensor:
    losses_C = kernels.cross_entropy_(logits_CV, targets.tokens_M[rows], scale)
    if targets.weights_M is None:
        return losses_C
    weights_C = targets.weights_M[rows]
    logits_CV.mul_(weights_C.unsqueeze(-1).to(logits_CV.dtype))
    return losses_C * weights_C


def _divergence_(
    teacher: Teacher, targets_M: Tensor, scale: float, logits_CV: Tensor, rows: slice
) -> Tensor:
    """With z and s logits, ours and the teacher's, and y the target, the gradient by z is
    (1 - share) · (softmax(z) - y) + share · t · (softmax(z / t) - softmax(s / t)).
    """
    t, share = teacher.temperature, teacher.share
    own_C1 = targets_M[rows].clamp(min=0).unsqueeze(-1)
    there_C = (targets_M[rows] >= 0).float()
    ours_CV = F.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
    plain_C = -ours_CV.gather(1, own_C1).squeeze(-1)
    pull_CV = ours_CV.exp_().mul_(1.0 - share)
    pull_CV.scatter_add_(1, own_C1, torch.full_like(own_C1, share - 1.0, dtype=torch.float32))
    taught_CV = _logits(teacher.x_MD[rows], teacher.head).float().div_(t)
    taught_CV = F.log_softmax(taught_CV, dim=-1)
    # In fp32 this divides the logits themselves, which nobody reads again.
    soft_CV = F.log_softmax(logits_CV.float().div_(t), dim=-1)
    pull_CV.add_(soft_CV.exp(), alpha=share * t)
    told_CV = taught_CV.exp()
    apart_C = taught_CV.sub_(soft_CV).mul_(told_CV).sum(-1)
    pull_CV.sub_(told_CV.mul_(share * t))
    logits_CV.copy_(pull_CV.mul_((scale * there_C).unsqueeze(-1)))
    return ((1.0 - share) * plain_C + share * t * t * apart_C) * there_C


def _logits(x_CD: Tensor, head: Head) -> Tensor:
    logits_CV = F.linear(x_CD, head.weight_VD, head.bias_V)
    return logits_CV if head.cap is None else head.cap * (logits_CV / head.cap).tanh()


def _judged(x_MD: Tensor, head: Head, judge: Judge, chunk: int, scale: float) -> Tensor:
    learning = any(each is not None and each.requires_grad for each in (x_MD, *head[:2]))
    loss: Tensor = _Judged.apply(
        x_MD, *head, judge, chunk, scale, torch.is_grad_enabled() and learning
    )
    return loss


class _Judged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_MD: Tensor, head_VD: Tensor, bias_V: Tensor | None, cap: float | None,
        judge: Judge, chunk: int, scale: float, needs_gradient: bool,
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
            total += judge(logits_CV, rows).sum()
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
        return *(_times(each, upstream[0]) for each in ctx.saved_tensors), *(None,) * 5


PROFILED = _Judged.__name__
"""How a profile calls it, forward, and backward with more behind."""


def _times(gradient: Tensor | None, upstream: Tensor) -> Tensor | None:
    if gradient is None:
        return None
    if upstream.device.type == "cpu" and float(upstream) == 1.0:
        return gradient
    return gradient * upstream.to(gradient.dtype)
