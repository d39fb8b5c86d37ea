"""A frozen matrix as a product, with a trained one of low rank beside it.

y = x Wᵀ + scale · (x Aᵀ) Bᵀ + b. Matrices that are one product in the model are several to an
adapter: query, key and value each have an A and a B of their own. All A lie one below the other and
are one product of x; each B stands in its rows and columns of a matrix that is zero elsewhere. No
gradient of W is computed, and W in fewer bits is made whole for a product and forgotten.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.adapt.packed import unpack
from narrows.kernels.interface import Activation, Kernels


class Frozen(NamedTuple):
    """A matrix of so many columns, or its codes where there are scales."""

    weight: Tensor
    scales: Tensor | None
    columns: int

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The matrix, in a type that codes are turned into."""
        if self.scales is None:
            return self.weight
        return unpack(self.weight, self.scales, self.columns, dtype)


class Low(NamedTuple):
    """A of all parts [P,D] and B of their rows [X,R], P = parts · R; `rows` are the parts' first
    and last in the product's `total`.
    """

    a_PD: Tensor
    b_XR: Tensor
    rows: tuple[tuple[int, int], ...]
    total: int
    scale: float

    def spread(self) -> Tensor:
        """scale · B as the matrix of all parts [E,P]."""
        return spread(self.b_XR, self.rows, self.total).mul(self.scale)


def spread(b_XR: Tensor, rows: tuple[tuple[int, int], ...], total: int) -> Tensor:
    """Each part's rows of B at its place in [E,P], zero elsewhere."""
    if rows == ((0, total),):
        return b_XR
    R = b_XR.shape[1]
    whole_EP = b_XR.new_zeros(total, len(rows) * R)
    for part_XR, place in zip(_split(b_XR, rows), _places(rows, R), strict=True):
        whole_EP[place] = part_XR
    return whole_EP


def gathered(whole_EP: Tensor, rows: tuple[tuple[int, int], ...]) -> Tensor:
    """The parts' rows of such a matrix [X,R]."""
    if len(rows) == 1 and rows[0] == (0, whole_EP.shape[0]):
        return whole_EP
    R = whole_EP.shape[1] // len(rows)
    return torch.cat([whole_EP[place] for place in _places(rows, R)])


def linear(
    x_BTD: Tensor, frozen: Frozen, bias_E: Tensor | None, low: Low | None = None,
    dropped_BTD: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x Wᵀ + b, and the low-rank product of `dropped`, or of x itself."""
    out: Tensor = _Linear.apply(
        x_BTD, dropped_BTD, *frozen, bias_E, *(low or (None,) * len(Low._fields))
    )
    return out


def activated_linear(
    h_BTX: Tensor, frozen: Frozen, bias_E: Tensor | None, low: Low | None,
    how: tuple[Kernels, Activation],
) -> Tensor:  # fmt: skip
    """The same of act(h), which is computed again in the backward pass instead of kept."""
    out: Tensor = _ActivatedLinear.apply(
        h_BTX, how, *frozen, bias_E, *(low or (None,) * len(Low._fields))
    )
    return out


def row_growth(frozen: Frozen, low: Low) -> Tensor:
    """By how much each row of W is shorter than W + scale · B A: √(|w|² / |w + scale · b A|²), fp32
    [E]. The sum is never made: |w + u|² = |w|² + 2 w·u + |u|² with u = b A.
    """
    with torch.no_grad():
        weight_ED = frozen.whole(low.a_PD.dtype)
        b_EP = low.spread()
        before_E = torch.linalg.vector_norm(weight_ED, dim=1, dtype=torch.float32).square()
        crossed_E = ((weight_ED @ low.a_PD.t()).float() * b_EP.float()).sum(1)
        gram_PP = low.a_PD @ low.a_PD.t()
        added_E = ((b_EP @ gram_PP).float() * b_EP.float()).sum(1)
        after_E = (before_E + 2.0 * crossed_E + added_E).clamp_min(1e-30)
        return (before_E.clamp_min(1e-30) / after_E).sqrt()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, dropped_BTD: Tensor | None, weight: Tensor, scales: Tensor | None,
        columns: int, bias_E: Tensor | None, *low: Any,
    ) -> Tensor:  # fmt: skip
        frozen, beside = Frozen(weight, scales, columns), _low(low)
        read_BTD = x_BTD if dropped_BTD is None else dropped_BTD
        out_BTE, h_MP = _product(x_BTD, read_BTD, frozen, bias_E, beside)
        ctx.shape, ctx.dtype, ctx.columns = x_BTD.shape, x_BTD.dtype, columns
        ctx.low = low[2:]
        kept = (None, None, None, None) if beside is None else (read_BTD, h_MP, *low[:2])
        ctx.save_for_backward(weight, scales, *kept)
        return out_BTE

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weight, scales, read_BTD, h_MP, a_PD, b_XR = ctx.saved_tensors
        frozen, low = Frozen(weight, scales, ctx.columns), _low((a_PD, b_XR, *ctx.low))
        dx, ddropped = ctx.needs_input_grad[:2]
        dout_ME = upstream[0].flatten(0, -2).contiguous()
        dx_MD = dout_ME @ frozen.whole(ctx.dtype) if dx else None
        dread_MD: Tensor | None = None
        grads: tuple[Tensor | None, ...] = (None, None)
        if low is not None:
            dh_MP, grads = _low_gradients(dout_ME, read_BTD.flatten(0, -2), h_MP, low)
            if ddropped:
                dread_MD = dh_MP @ low.a_PD
            elif dx_MD is not None:
                dx_MD.addmm_(dh_MP, low.a_PD)
        shaped = (None if each is None else each.view(ctx.shape) for each in (dx_MD, dread_MD))
        return *shaped, None, None, None, None, *grads, None, None, None


class _ActivatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_BTX: Tensor, how: tuple[Kernels, Activation], weight: Tensor,
        scales: Tensor | None, columns: int, bias_E: Tensor | None, *low: Any,
    ) -> Tensor:  # fmt: skip
        frozen, (kernels, activation) = Frozen(weight, scales, columns), how
        y_BTF = kernels.activation(h_BTX, activation)
        out_BTE, low_MP = _product(y_BTF, y_BTF, frozen, bias_E, _low(low))
        ctx.columns, ctx.how, ctx.low = columns, how, low[2:]
        ctx.save_for_backward(h_BTX, weight, scales, low_MP, *low[:2])
        return out_BTE

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        h_BTX, weight, scales, low_MP, a_PD, b_XR = ctx.saved_tensors
        frozen, low = Frozen(weight, scales, ctx.columns), _low((a_PD, b_XR, *ctx.low))
        kernels, activation = ctx.how
        dout_ME = upstream[0].flatten(0, -2).contiguous()
        with torch.enable_grad():
            again_BTX = h_BTX.detach().requires_grad_()
            y_BTF = kernels.activation(again_BTX, activation)
        grads: tuple[Tensor | None, ...] = (None, None)
        dlow_MP = None
        if low is not None:
            dlow_MP, grads = _low_gradients(dout_ME, y_BTF.detach().flatten(0, -2), low_MP, low)
        dh_BTX = None
        if ctx.needs_input_grad[0]:
            dy_MF = dout_ME @ frozen.whole(h_BTX.dtype)
            if low is not None and dlow_MP is not None:
                dy_MF.addmm_(dlow_MP, low.a_PD)
            (dh_BTX,) = torch.autograd.grad(y_BTF, again_BTX, dy_MF.view_as(y_BTF))
        return dh_BTX, None, None, None, None, None, *grads, None, None, None


def _product(
    x_BTD: Tensor, read_BTD: Tensor, frozen: Frozen, bias_E: Tensor | None, low: Low | None
) -> tuple[Tensor, Tensor | None]:
    """The sum of both products, and what lies between A and B [M,P]."""
    out_BTE = F.linear(x_BTD, frozen.whole(x_BTD.dtype), bias_E)
    if low is None:
        return out_BTE, None
    h_MP = read_BTD.flatten(0, -2) @ low.a_PD.t()
    out_BTE.flatten(0, -2).addmm_(h_MP, low.spread().t())
    return out_BTE, h_MP


def _low_gradients(
    dout_ME: Tensor, read_MD: Tensor, h_MP: Tensor, low: Low
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The gradient of what lies between A and B, and of both."""
    dh_MP = dout_ME @ low.spread()
    db_XR = gathered(dout_ME.t() @ h_MP, low.rows).mul(low.scale)
    return dh_MP, (dh_MP.t() @ read_MD, db_XR)


def _low(fields: tuple[Any, ...]) -> Low | None:
    return None if fields[0] is None else Low(*fields)


def _split(b_XR: Tensor, rows: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    return b_XR.split([stop - start for start, stop in rows])


def _places(rows: tuple[tuple[int, int], ...], R: int) -> list[tuple[slice, slice]]:
    """Of each part in [E,P]."""
    return [
        (slice(*part), slice(index * R, (index + 1) * R)) for index, part in enumerate(rows)
    ]  # fmt: skip
