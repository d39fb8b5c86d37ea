"""A plugin of pytest: the processor has AVX-512, whose instructions are emulated."""

from __future__ import annotations

import hashlib
from pathlib import Path

from narrows.kernels import build

HEADER = Path(__file__).with_name("emulated.h")
# Part of what a library is called by.
_STATE = hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16]

# Unrolled and vectorized, it would take a compiler minutes.
_FLAGS = ("-O1", "-Wno-psabi", "-include", str(HEADER), f"-DEMULATED=0x{_STATE}u")

build.AVX512 = build.AVX512._replace(flags=(*build.AVX2.flags, *_FLAGS))
build._processor_flags = lambda: {*build.AVX512.needed, *build.AVX2.needed}
