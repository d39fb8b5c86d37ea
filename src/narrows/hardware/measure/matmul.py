"""Products of matrices, in the three orientations that training runs."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch

from narrows.hardware import fit
from narrows.hardware.measure.device import Target
from narrows.hardware.measure.sampling import Sample, Trial, sample
from narrows.hardware.measurement import SPOT_SHAPE
from narrows.kernels.products import mend
from narrows.spec.machine import Direction, MatmulCurve, MatmulPoint, Precision

_ROWS = (64, 256, 1024, 4096)
_WEIGHTS = (
    (64, 256), (128, 384), (384, 384), (256, 1024), (384, 1536), (768, 768), (768, 3072),
    (256, 8192),
)  # fmt: skip
"""(inputs, outputs) of weights: attention's, feed-forward's and a small vocabulary's."""
_ELEMENTS_MAX = 1 << 23
"""Of one operand; larger ones take long and say no more about the curve."""
_LONGEST_SHARE = 0.02
"""A single product may take this share of the time for its precision."""


class Shape(NamedTuple):
    """One product (m,k) @ (k,n) and what it is for."""

    m: int
    n: int
    k: int
    direction: Direction


_SPOT = Shape(*SPOT_SHAPE, "forward")


def curves(where: Target, *, seconds: float) -> tuple[list[MatmulCurve], list[Sample]]:
    """Curves of every precision that works here, and all samples taken."""
    plan: dict[Precision, float] = {"fp32": 0.5, "bf16": 0.35, "int8": 0.15}
    found: list[MatmulCurve] = []
    samples: list[Sample] = []
    for precision, share in plan.items():
        taken = _measure(where, precision, share * seconds)
        samples += taken.values()
        if len(taken) < 5:
            continue
        points = [_point(shape, measured) for shape, measured in taken.items()]
        settled = [measured.settled for measured in taken.values()]
        source = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        found.append(fit.matmul_curve(precision, points, settled, source))
    return found, samples


def shapes(precision: Precision) -> list[Shape]:
    """The grid; int8 serves inference, which runs forward only."""
    grid: list[Shape] = [Shape(16, 16, 16, "forward")]
    for rows, (inputs, outputs) in itertools.product(_ROWS, _WEIGHTS):
        if rows * outputs > _ELEMENTS_MAX:
            continue
        grid.append(Shape(rows, outputs, inputs, "forward"))
        if precision != "int8":
            grid.append(Shape(rows, inputs, outputs, "dgrad"))
            grid.append(Shape(outputs, inputs, rows, "wgrad"))
    return grid


def spot(where: Target, precision: Precision, *, seconds: float) -> float:
    """FLOP/s of one large product now."""
    trial = {_SPOT: product(where, precision)}
    taken = sample(trial, seconds=seconds, longest=math.inf, finish=where.finish)
    return 2 * _SPOT.m * _SPOT.n * _SPOT.k / taken[_SPOT].seconds


def product(where: Target, precision: Precision) -> Trial:
    """One product of ordinary size, ready to run."""
    return _trials(where, precision, [_SPOT])[_SPOT]


def threads_best(where: Target, candidates: tuple[int, ...]) -> int:
    """Which number of threads multiplies fastest; on a tie the smaller, which leaves cores free."""
    rates: dict[int, float] = {}
    for threads in candidates:
        torch.set_num_threads(threads)
        rates[threads] = spot(where, "fp32", seconds=0.5)
    fastest = max(rates.values())
    return min(threads for threads, rate in rates.items() if rate > 0.95 * fastest)


def _point(shape: Shape, measured: Sample) -> MatmulPoint:
    m, n, k, direction = shape
    seconds = float(f"{measured.seconds:.4g}")
    return MatmulPoint(m=m, n=n, k=k, seconds=seconds, direction=direction)


def _measure(where: Target, precision: Precision, seconds: float) -> dict[Shape, Sample]:
    def work(shape: Shape) -> float:
        return float(shape.m * shape.n * shape.k)

    try:
        trials = _trials(where, precision, sorted(shapes(precision), key=work))
        trials[Shape(16, 16, 16, "forward")]()
    except (RuntimeError, NotImplementedError):
        return {}
    longest = _LONGEST_SHARE * seconds
    return sample(trials, seconds=seconds, longest=longest, finish=where.finish, work=work)


def _trials(where: Target, precision: Precision, grid: list[Shape]) -> dict[Shape, Trial]:
    """Products over views of three shared buffers, so that no trial pays for fresh pages."""
    mend()
    largest = max(max(s.m * s.k, s.k * s.n) for s in grid)
    left = _filled(largest, precision, where)
    right = _filled(largest, precision, where)
    kind = torch.int32 if precision == "int8" else left.dtype
    out = torch.empty(max(s.m * s.n for s in grid), dtype=kind, device=where.torch_name)

    def trial(shape: Shape) -> Trial:
        m, n, k, direction = shape
        a, b, o = left[: m * k], right[: k * n], out[: m * n].view(m, n)
        if direction == "wgrad":
            a, b = a.view(k, m).t(), b.view(k, n)
        elif direction == "dgrad":
            a, b = a.view(m, k), b.view(k, n)
        else:
            a, b = a.view(m, k), b.view(n, k).t()
        if precision == "int8":
            return lambda: torch._int_mm(a, b, out=o)
        return lambda: torch.mm(a, b, out=o)

    return {shape: trial(shape) for shape in grid}


def _filled(elements: int, precision: Precision, where: Target) -> torch.Tensor:
    if precision == "int8":
        return torch.randint(-127, 128, (elements,), dtype=torch.int8, device=where.torch_name)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.randn(elements, device=where.torch_name).to(kind)
