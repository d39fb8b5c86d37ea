"""Keep freed pages: a step frees and takes the same buffers, and fresh pages are slow to get."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER, _AHEAD = 2**31 - 1, 64 * 2**20


def keep_pages() -> bool:
    """Tell glibc to serve large buffers from a heap it does not give back; False elsewhere.

    Page faults cost 0.3 s a gigabyte; a training step would take gigabytes of them again and again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AHEAD), (_ARENA_MAX, 1))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
