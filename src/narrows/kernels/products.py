"""torch's products in bf16, put right on processors that multiply none.

torch computes them there value by value, at a twentieth of what fp32 reaches. `mend` puts
native/matmul.cpp in their place, in this process and for whoever asks torch for a product of two
matrices: a model, an adapter, a gradient, what autograd does by itself. All else goes to torch as
before.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from narrows.kernels.build import AVX2, level, obstacle
from narrows.kernels.native import call


def mend() -> None:
    """Do so where it helps; a second time it changes nothing."""
    if obstacle() is None and level() is AVX2:
        _mended()


@cache
def _mended() -> torch.library.Library:
    """What holds the replacements: they last as long as it does."""
    library = torch.library.Library("aten", "IMPL")
    # torch says of a replacement that it was allowed to replace.
    warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
    for name, ours in (
        ("mm", _mm), ("mm.out", _mm_out), ("addmm", _addmm), ("addmm.out", _addmm_out),
        ("addmm_", _addmm_),
    ):  # fmt: skip
        library.impl(name, _or_torch(name, ours), "CPU", with_keyset=True, allow_override=True)
    return library


def _or_torch(name: str, ours: Any) -> Any:
    """A function of the dispatcher's that asks torch where ours gives nothing."""
    theirs = torch.library.get_kernel(f"aten::{name}", "CPU")

    def product(keys: torch.DispatchKeySet, *operands: Tensor, **options: Any) -> Tensor:
        found = ours(*operands, **options)
        return theirs.call_boxed(keys, *operands, **options) if found is None else found

    return product


def _mm(a_MK: Tensor, b_KN: Tensor) -> Tensor | None:
    return _product(a_MK, b_KN, None, None)


def _mm_out(a_MK: Tensor, b_KN: Tensor, *, out: Tensor) -> Tensor | None:
    return _product(a_MK, b_KN, None, out)


def _addmm(added: Tensor, a_MK: Tensor, b_KN: Tensor, **factors: float) -> Tensor | None:
    return None if _scaled(factors) else _product(a_MK, b_KN, added, None)


def _addmm_out(
    added: Tensor, a_MK: Tensor, b_KN: Tensor, *, out: Tensor, **factors: float
) -> Tensor | None:
    return None if _scaled(factors) else _product(a_MK, b_KN, added, out)


def _addmm_(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor, **factors: float) -> Tensor | None:
    return None if _scaled(factors) else _product(a_MK, b_KN, sum_MN, sum_MN)


def _scaled(factors: dict[str, float]) -> bool:
    return any(factor != 1 for factor in factors.values())


def _product(a_MK: Tensor, b_KN: Tensor, added: Tensor | None, out: Tensor | None) -> Tensor | None:
    """a b + added, into `out` or something new; None where that is not ours to do."""
    given = [each for each in (a_MK, b_KN, added, out) if each is not None]
    if any(each.dtype != torch.bfloat16 for each in given):
        return None
    (M, K), (rows, N) = a_MK.shape, b_KN.shape
    if rows != K or not all((M, N, K)):
        return None
    if added is not None and (added.shape not in ((N,), (1, N), (M, N)) or added.stride(-1) != 1):
        return None
    if out is not None and (out.shape != (M, N) or out.stride(1) != 1):
        return None
    a_MK, b_KN = _followed(a_MK), _followed(b_KN)
    out = a_MK.new_empty(M, N) if out is None else out
    row = 0 if added is None or added.shape[:-1] in ((), (1,)) else added.stride(0)
    call(
        "matmul", a_MK, *a_MK.stride(), b_KN, *b_KN.stride(), added, row, out, out.stride(0),
        M, N, K,
    )  # fmt: skip
    return out


def _followed(matrix: Tensor) -> Tensor:
    """As it is where values of a row or of a column follow each other, else a copy."""
    return matrix if 1 in matrix.stride() else matrix.contiguous()
