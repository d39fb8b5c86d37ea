"""Keep freed pages: a step frees and takes the same buffers, and fresh pages are slow to get."""

from __future__ import annotations

import ctypes
import gc
import platform
import warnings
from functools import cache
from pathlib import Path

import torch

from narrows.kernels.build import compiled, obstacle
from narrows.spec.errors import RunFailed

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER, _AHEAD = 2**31 - 1, 64 * 2**20


@cache
def keep_pages() -> bool:
    """Take torch's tensors from a pool of their own where native kernels can be had, and tell glibc
    to serve all else from a heap that it does not give back. False where neither is possible.

    Page faults cost 0.3 s a gigabyte; a training step would take gigabytes of them again and again.
    """
    pooled = _pool() is not None
    if platform.libc_ver()[0] != "glibc":
        return pooled
    libc = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AHEAD), (_ARENA_MAX, 1))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def give_back() -> None:
    """Let the system have the pages of what is freed by now, as after one run and before another:
    how much memory the next one takes would not be seen in what is held.
    """
    gc.collect()
    if keep_pages.cache_info().currsize:
        pool = _pool()
        if pool is not None:
            pool.narrows_pool_rest()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _pool() -> ctypes.CDLL | None:
    """native/pool.cpp, which serves torch from now on; None where it cannot, and why is said."""
    if obstacle() is not None:
        return None
    installed = Path(torch.__file__).parent
    interface = int(torch.compiled_with_cxx11_abi())
    # The version is there for the library's name: each torch has its own.
    flags = (
        "-O3", "-std=c++17", "-fPIC", f"-I{installed / 'include'}",
        f"-D_GLIBCXX_USE_CXX11_ABI={interface}", f"-DNARROWS_TORCH={torch.__version__!r}",
    )  # fmt: skip
    joining = (f"-L{installed / 'lib'}", "-lc10", f"-Wl,-rpath,{installed / 'lib'}")
    try:
        taken = ctypes.CDLL(str(compiled("pool", ("pool.cpp", "pool.h"), flags, joining)))
        taken.narrows_pool.restype = ctypes.c_bool
        if taken.narrows_pool():
            return taken
        why = "the system gives no addresses for one (ulimit -v)"
    except (RunFailed, OSError) as error:
        why = error.causes[0] if isinstance(error, RunFailed) and error.causes else str(error)
    warnings.warn(f"tensors take up to twice the memory, for want of a pool: {why}", stacklevel=3)
    return None
