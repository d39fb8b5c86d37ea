"""The kernels of the other level: AVX2's where a processor has more, else AVX-512's, emulated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from narrows.kernels import build

HERE = Path(__file__).parent
KERNELS = ["test_decoder.py", "test_parity.py", "test_products.py"]


def all_holds(plugin: str, path: Path) -> None:
    # Quiet already, by the project's own settings; twice as quiet it would not say how many passed.
    command = [sys.executable, "-m", "pytest", "-p", f"tests.kernels.{plugin}",
               "-p", "no:cacheprovider", str(path)]  # fmt: skip
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(build.obstacle() is not None, reason=str(build.obstacle()))
@pytest.mark.skipif(build.level() is build.AVX2, reason="all tests here are of AVX2")
@pytest.mark.parametrize("path", KERNELS)
def test_all_holds_with_avx2_alone(path: str) -> None:
    all_holds("as_avx2", HERE / path)


@pytest.mark.slow
@pytest.mark.skipif(build.obstacle() is not None, reason=str(build.obstacle()))
@pytest.mark.skipif(build.level() is build.AVX512, reason="all tests here are of AVX-512")
@pytest.mark.parametrize("path", [*KERNELS, "test_adapters.py", "test_cache.py", "test_past.py"])
def test_all_holds_with_avx512_emulated(path: str) -> None:
    all_holds("as_avx512", HERE / path)
