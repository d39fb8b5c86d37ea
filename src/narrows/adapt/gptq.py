"""GPTQ: columns are rounded one by one, and those not rounded yet make up for the error.

Of all w' with some columns fixed, the one nearest to w in what it makes of the inputs, x (w' - w)ᵀ,
follows from H = Σ x xᵀ: rounding column j by e moves the columns k behind it by -e U[j,k] / U[j,j],
where U is the upper Cholesky factor of H⁻¹ (arXiv:2210.17323, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.adapt.calibration import Inputs
from narrows.adapt.method import GPTQ, Type
from narrows.adapt.rounding import fitted
from narrows.model.blocks import Groups
from narrows.model.grouped import GROUP
from narrows.spec.errors import RunFailed

_BLOCK = 4 * GROUP
"""Columns that are finished before the others hear of them: one product instead of many."""
_TRIES = 6


@torch.no_grad()
def gptq(weight_ND: Tensor, inputs: Inputs, type: Type, method: GPTQ) -> Groups:
    """The matrix rounded for those inputs.

    Groups are the file's whatever the order. Of columns in their own order, a group's grid is
    fitted again when all before it have moved it.
    """
    N, D = weight_ND.shape
    second_DD = inputs.second_DD
    order_D = torch.arange(D)
    if method.ordered:
        order_D = second_DD.diagonal().argsort(descending=True, stable=True)
    left_ND = weight_ND.float()[:, order_D].contiguous()
    upper_DD = _upper(second_DD[order_D][:, order_D], method.damping)
    curvature_GCC = inputs.curvature_GCC
    grid, codes_ND = fitted(weight_ND.float(), type, curvature_GCC), torch.empty(N, D)
    for start in range(0, D, _BLOCK):
        stop = min(start + _BLOCK, D)
        errors_NB = torch.empty(N, stop - start)
        for at, column in enumerate(order_D[start:stop].tolist(), start):
            group = column // GROUP
            if not method.ordered and column % GROUP == 0:
                within = left_ND[:, column : column + GROUP]
                fresh = fitted(within, type, curvature_GCC[group : group + 1])
                grid.scales_NG[:, group], grid.least_NG[:, group] = fresh[1][:, 0], fresh[2][:, 0]
            one = grid.of(group)
            codes_ND[:, column : column + 1] = one.codes(left_ND[:, at : at + 1, None])[..., 0]
            value_N = one.values(codes_ND[:, column : column + 1, None])[:, 0, 0]
            error_N = (left_ND[:, at] - value_N) / upper_DD[at, at]
            left_ND[:, at:stop] -= torch.outer(error_N, upper_DD[at, at:stop])
            errors_NB[:, at - start] = error_N
        left_ND[:, stop:] -= errors_NB @ upper_DD[start:stop, stop:]
    return grid.groups(codes_ND, type)


def _upper(second_DD: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of H⁻¹, H damped so far that it has one.

    An input that was never seen counts as much as the mean, and moves nothing else.
    """
    curvature_DD = second_DD.double()
    diagonal_D = curvature_DD.diagonal()
    mean = float(diagonal_D.mean()) or 1.0
    diagonal_D[diagonal_D == 0.0] = mean
    for _ in range(_TRIES):
        damped_DD = curvature_DD + damping * mean * torch.eye(len(diagonal_D))
        lower_DD, failed = torch.linalg.cholesky_ex(damped_DD)
        if not failed:
            inverse_DD = torch.cholesky_inverse(lower_DD)
            upper_DD, failed = torch.linalg.cholesky_ex(inverse_DD, upper=True)
            if not failed:
                return upper_DD.float()
        damping *= 10.0
    raise RunFailed("the inputs of a matrix have no curvature that can be inverted",
                    hint="calibrate with another text: --calibrate FILE")  # fmt: skip
