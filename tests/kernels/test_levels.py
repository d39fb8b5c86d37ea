"""The kernels of AVX2, on processors whose own tests compute with more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from narrows.kernels import build

HERE = Path(__file__).parent


@pytest.mark.skipif(build.obstacle() is not None, reason=str(build.obstacle()))
@pytest.mark.skipif(build.level() is build.AVX2, reason="all tests here are of AVX2")
@pytest.mark.parametrize("path", ["test_decoder.py", "test_parity.py", "test_products.py"])
def test_all_holds_with_avx2_alone(path: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.kernels.as_avx2",
               "-p", "no:cacheprovider", str(HERE / path)]  # fmt: skip
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
