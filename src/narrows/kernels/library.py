"""The compiled kernels, loaded once: `native/*.cpp` say what their functions compute."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from narrows.kernels.build import library

_P, _I, _F, _B = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "attention_forward": ([_P] * 6 + [_I] * 5, None),
    "attention_backward": ([_P] * 9 + [_I] * 5, None),
    "attention_scratch": ([_P, *[_I] * 3], _I),
    "threads": ([], _I),
    "norm_forward": ([_P] * 7 + [_I, _I, _F, _B], None),
    "norm_backward": ([_P] * 9 + [_I, _I, _B], None),
    "gelu_forward": ([_P, _P, _I], None),
    "gelu_backward": ([_P] * 4 + [_I], None),
    "swiglu_forward": ([_P, _P, _I, _I], None),
    "swiglu_backward": ([_P] * 4 + [_I, _I], None),
    "cross_entropy": ([_P] * 3 + [_F, _I, _I], None),
    "column_sum": ([_P, _P, _I, _I], None),
    "decode": ([_P] * 4 + [_I], None),
    "encode": ([_P] * 4 + [_I], None),
    "decoder_step": ([_P, _P], None),
    "matmul": ([_P, _I, _I, _P, _I, _I, _P, _I, _P, _I, _I, _I, _I], None),
    "accumulate": ([_P, _P, _I], None),
    "squared_norm": ([_P, _B, _P, _I], ctypes.c_double),
    "adamw": ([_P] * 5 + [_B, _I, _P], None),
    "join": ([_P, _P, _P, _I], None),
    "part": ([_P, _P, _P, _I], None),
}


@cache
def native_library() -> ctypes.CDLL:
    """The compiled kernels, with the types of their functions."""
    loaded = ctypes.CDLL(str(library()))
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(loaded, f"narrows_{name}")
        function.argtypes, function.restype = arguments, result
    return loaded
