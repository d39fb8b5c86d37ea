from __future__ import annotations

import pytest
import torch
from torch import Tensor

from narrows.kernels.build import obstacle
from narrows.kernels.interface import Kernels
from narrows.kernels.reference import TorchKernels


@pytest.fixture(scope="session")
def native() -> Kernels:
    reason = obstacle()
    if reason:
        pytest.skip(f"no native kernels here: {reason}")
    from narrows.kernels.native import NativeKernels

    return NativeKernels()


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return TorchKernels()


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers that bf16 holds exactly, as fp32."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return drawn.bfloat16().float()


def error(found: Tensor, expected: Tensor) -> float:
    """Root of the mean squared error, as a share of the expected values' own."""
    scale = expected.double().square().mean().sqrt().clamp_min(1e-30)
    return float((found.double() - expected.double()).square().mean().sqrt() / scale)


# Rounding to bf16's 8 bits is off by 2^-9 at most and by this in the root mean square.
ROUNDING = 2**-9 / 3**0.5
