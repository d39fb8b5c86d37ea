"""Compile the C++ kernels with the machine's compiler, once; later starts find the library."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from narrows.spec.errors import RunFailed
from narrows.spec.home import narrows_home

SOURCES = ("attention.cpp", "coded.cpp", "decoder.cpp", "matmul.cpp", "pointwise.cpp", "update.cpp")
HEADERS = (
    "activations.h", "barrier.h", "cache.h", "lanes.h", "lanes256.h", "lanes512.h", "low_rank.h",
    "norm.h", "panels.h", "products.h", "quantized.h", "rows.h", "scratch.h", "shares.h",
    "tiles256.h", "tiles512.h",
)  # fmt: skip
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-mbmi2")


class Level(NamedTuple):
    """Instructions that the kernels can be compiled for, as Linux calls what a processor has."""

    needed: tuple[str, ...]
    flags: tuple[str, ...]


AVX512 = Level(
    ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni"),
    ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vnni",
     "-mfma"),
)  # fmt: skip
AVX2 = Level(("avx2", "fma", "f16c"), ("-mavx2", "-mfma", "-mf16c"))


def level() -> Level | None:
    """The widest that this processor has."""
    has = _processor_flags()
    return next((each for each in (AVX512, AVX2) if has >= set(each.needed)), None)


def obstacle() -> str | None:
    """Why native kernels cannot be had here, or None where they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        return f"they are written for Linux on x86-64, this is {here}"
    if level() is None:
        return f"the processor lacks {_lacking(AVX2)}"
    if _compiler() is None:
        return "no C++ compiler was found (CXX, c++, g++ or clang++)"
    return None


def library() -> Path:
    """Path of the compiled kernels; raises RunFailed with the compiler's words."""
    return compiled("kernels", (*SOURCES, *HEADERS), (*FLAGS, *(level() or AVX2).flags))


def compiled(
    name: str, chosen: tuple[str, ...], flags: tuple[str, ...], joining: tuple[str, ...] = ()
) -> Path:
    """Path of a library of these files of native/, made where it is not there yet; raises RunFailed
    with the compiler's words.
    """
    compiler = _compiler()
    if compiler is None:
        raise RunFailed("no C++ compiler was found", hint="install g++, or plan with kernels=torch")
    folder = files("narrows.kernels") / "native"
    texts = {each: (folder / each).read_text() for each in chosen}
    said = repr((sorted(texts.items()), flags, joining, compiler))
    path = narrows_home() / "native" / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of the processes that a layout starts at once the first compiles, and the others wait.
        with path.parent.with_name("native.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _compile([compiler, *flags], texts, joining, path)
    return path


def _compile(
    compiler: list[str], texts: dict[str, str], joining: tuple[str, ...], path: Path
) -> None:
    """Each source by itself, as many at a time as there are cores; then all are joined."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        for name, text in texts.items():
            (Path(work) / name).write_text(text)

        def run(*arguments: str) -> None:
            done = subprocess.run([*compiler, *arguments], cwd=work, capture_output=True, text=True)
            if done.returncode:
                raise RunFailed(
                    f"{compiler[0]} could not compile the native kernels",
                    causes=done.stderr.strip().splitlines()[:5],
                    hint="install a newer g++, or plan with --set layout.kernels=torch "
                    "--set layout.precision=fp32",
                )

        sources = [name for name in texts if name.endswith(".cpp")]
        longest_first = sorted(sources, key=lambda name: -len(texts[name]))
        with ThreadPoolExecutor(os.cpu_count()) as several:
            list(several.map(lambda name: run("-c", name, "-o", f"{name}.o"), longest_first))
        run("-shared", *(f"{name}.o" for name in sources), *joining, "-o", path.name)
        (Path(work) / path.name).replace(path)


def _lacking(wanted: Level) -> str:
    has = _processor_flags()
    return ", ".join(flag for flag in wanted.needed if flag not in has)


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
