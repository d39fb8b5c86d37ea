"""Compile the C++ kernels with the machine's compiler, once; later starts find the library."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from narrows.spec.errors import RunFailed
from narrows.spec.home import narrows_home

SOURCES = ("attention.cpp", "coded.cpp", "decoder.cpp", "pointwise.cpp", "update.cpp")
HEADERS = (
    "activations.h", "barrier.h", "norm.h", "quantized.h", "rows.h", "shares.h", "simd.h",
)  # fmt: skip
FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=fast",
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vnni",
    "-mfma", "-mbmi2",
)  # fmt: skip
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni")


def obstacle() -> str | None:
    """Why native kernels cannot be had here, or None where they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        return f"they are written for Linux on x86-64, this is {here}"
    missing = [flag for flag in NEEDED if flag not in _processor_flags()]
    if missing:
        return f"the processor lacks {', '.join(missing)}"
    if _compiler() is None:
        return "no C++ compiler was found (CXX, c++, g++ or clang++)"
    return None


def library() -> Path:
    """Path of the compiled library; raises RunFailed with the compiler's words."""
    compiler = _compiler()
    if compiler is None:
        raise RunFailed("no C++ compiler was found", hint="install g++, or plan with kernels=torch")
    folder = files("narrows.kernels") / "native"
    sources = {name: (folder / name).read_text() for name in (*SOURCES, *HEADERS)}
    key = hashlib.sha256(repr((sorted(sources.items()), FLAGS, compiler)).encode()).hexdigest()[:16]
    path = narrows_home() / "native" / f"kernels-{key}.so"
    if not path.exists():
        _compile(compiler, sources, path)
    return path


def _compile(compiler: str, sources: dict[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        for name, text in sources.items():
            (Path(work) / name).write_text(text)
        out = Path(work) / path.name
        command = [compiler, *FLAGS, *SOURCES, "-o", out.name]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(
                f"{compiler} could not compile the native kernels",
                causes=done.stderr.strip().splitlines()[:5],
                hint="plan with --set layout.kernels=torch, or install a newer g++",
            )
        out.replace(path)


def _compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def _processor_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()
