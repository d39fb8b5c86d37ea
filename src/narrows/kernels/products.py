"""torch's products in bf16, put right on processors that multiply none.

torch computes them there value by value, at a twentieth of what fp32 reaches. `mend` puts
native/matmul.cpp in their place, in this process and for whoever asks torch for a product of two
matrices: a model, an adapter, a gradient, what autograd does by itself. All else goes to torch as
before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from narrows.kernels.build import AVX2, level, obstacle
from narrows.kernels.native import call


def needed() -> bool:
    """Whether this processor is one of those, and has what ours needs."""
    return obstacle() is None and level() is AVX2


def mend() -> None:
    """Do so where it helps; a second time it changes nothing."""
    if needed():
        _mended()


@cache
def _mended() -> torch.library.Library:
    """What holds the replacements: they last as long as it does."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch says of a replacement that it was allowed to replace.
        warnings.simplefilter("ignore", UserWarning)
        for name in ("mm", "mm.out", "addmm", "addmm.out", "addmm_"):
            library.impl(name, _mending(name), "CPU", with_keyset=True, allow_override=True)
    return library


def _mending(name: str) -> Callable[..., Any]:
    """A function of the dispatcher's that asks torch for what is not ours to do."""
    theirs = torch.library.get_kernel(f"aten::{name}", "CPU")

    def product(keys: torch.DispatchKeySet, *operands: Tensor, **options: Any) -> Any:
        found = asked(name, *operands, **options)
        return theirs.call_boxed(keys, *operands, **options) if found is None else found

    return product


def asked(
    name: str, *operands: Tensor, out: Tensor | None = None, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    """What torch's operation of that name gives, or None where that is not ours to do."""
    if beta != 1 or alpha != 1:
        return None
    *added, a_MK, b_KN = operands
    into = operands[0] if name == "addmm_" else out
    return _product(a_MK, b_KN, added[0] if added else None, into)


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
