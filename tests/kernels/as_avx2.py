"""A plugin of pytest: the processor has AVX2 and no more."""

from __future__ import annotations

from narrows.kernels import build

build._processor_flags = lambda: set(build.AVX2.needed)
