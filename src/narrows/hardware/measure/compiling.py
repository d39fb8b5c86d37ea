"""torch.compile: whether it works here, what one block costs once and what that buys."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from narrows.hardware.measure.device import Target
from narrows.hardware.measure.sampling import Trial, sample
from narrows.kernels.blocks import BlockShape, BlockStack
from narrows.kernels.load import load
from narrows.spec.machine import Compiler, Fact
from narrows.spec.units import Seconds

_SHAPE = BlockShape("gpt2", layers=1, width=384, head_width=64, sequences=4, positions=256)
_STEP_SECONDS = 1.5


def compiler(where: Target, precision: torch.dtype) -> Compiler:
    """Compile one block's forward and backward from nothing and time it against the eager one."""
    block = BlockStack(_SHAPE.spec, load("torch"), precision, where.torch_name)
    sizes = (_SHAPE.sequences, _SHAPE.positions, _SHAPE.width)
    x_BTD = torch.randn(sizes, dtype=precision, device=where.torch_name)
    x_BTD.requires_grad_()
    compiled = torch.compile(block, dynamic=False)
    started = time.perf_counter()
    try:
        torch.autograd.backward(compiled(x_BTD).sum())
    except Exception as error:  # whatever inductor or the C++ compiler throws means "not here"
        return Compiler(available=False, reason=_first_line(error))
    where.finish()
    first = time.perf_counter() - started

    def step(run: Callable[[torch.Tensor], torch.Tensor]) -> Trial:
        return lambda: torch.autograd.backward(run(x_BTD).sum())

    trials = {"eager": step(block), "compiled": step(compiled)}
    taken = sample(trials, seconds=_STEP_SECONDS, longest=math.inf, finish=where.finish)
    eager, quick = taken["eager"].seconds, taken["compiled"].seconds
    source = (
        f"a block of width {_SHAPE.width} on {_SHAPE.sequences} x {_SHAPE.positions} positions, "
        "forward and backward"
    )
    return Compiler(
        available=True,
        reason=f"torch {torch.__version__} compiled a block and ran it",
        seconds_per_block=Fact(
            value=Seconds(first - quick).rounded(3), basis="measured", source=f"{source}, no cache"
        ),
        speedup=Fact(value=float(f"{eager / quick:.3g}"), basis="measured", source=source),
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
