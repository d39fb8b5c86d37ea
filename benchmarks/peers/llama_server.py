"""llama.cpp's own server, which llama-cpp-python's source has along: compiled here, once."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from peers.environment import CACHE, PACKAGES

OPTIONS = ("CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF",
           "LLAMA_OPENSSL=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_BUILD_TESTS=OFF",
           "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_APP=OFF")  # fmt: skip
"""For this processor, and nothing that is not needed here."""


def llama_server(*, talk: Callable[[str], None]) -> Path:
    """The program."""
    folder = CACHE / "llama-server"
    program = folder / "build" / "bin" / "llama-server"
    if not program.is_file():
        talk(f"llama-server: compiling it in {folder} (once, a quarter of an hour)")
        folder.mkdir(parents=True, exist_ok=True)
        wanted = PACKAGES["llama_cpp"][0]
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        _run(*pip, "--no-binary", ":all:", "--dest", str(folder), wanted)
        [archive] = folder.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        [source] = folder.glob("*/vendor/llama.cpp")
        build = str(folder / "build")
        _run("cmake", "-S", str(source), "-B", build, *(f"-D{each}" for each in OPTIONS))
        _run("cmake", "--build", build, "--target", "llama-server", "--parallel", "2")
    return program


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed\n{done.stderr[-2000:]}")
