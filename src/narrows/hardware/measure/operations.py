"""Attention, memory-bound operations and the cost of launching one: the kernels a model runs."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch

from narrows.hardware.measure.device import Target
from narrows.hardware.measure.sampling import Sample, Trial, sample
from narrows.kernels.interface import OPERATIONS
from narrows.kernels.trials import attention_trial, trial
from narrows.spec.machine import (
    AttentionCurve,
    AttentionPoint,
    Fact,
    KernelCurve,
    KernelPoint,
    KernelSet,
)
from narrows.spec.units import Seconds

Trained = Literal["fp32", "bf16"]
_PRECISIONS: dict[KernelSet, tuple[Trained, ...]] = {"torch": ("fp32", "bf16"), "native": ("bf16",)}
"""What each kernel set can be trained in."""
_ELEMENTS = (1 << 14, 1 << 17, 1 << 20, 1 << 23)
_ELEMENTS_PARAMETERS = 1 << 24
"""Of a whole model's parameters, which no cache holds."""
_ON_PARAMETERS = ("adamw", "accumulate", "squared_norm")
_ATTENTION = (
    (48, 128, 64), (48, 256, 64), (24, 512, 64), (12, 1024, 64), (4, 2048, 64),
    (48, 256, 16), (48, 256, 32), (24, 256, 128),
)  # fmt: skip
"""(heads of all sequences, positions, head width): the work of each is alike."""
_NOTHING_SECONDS = 3e-7
"""What takes less than this is a callable that does nothing: no backward pass."""
_CHAIN = 50
_BYTES_AN_ELEMENT = 200
"""Memory that the trials of one operation take together, by the elements of the largest."""


def launch(where: Target, *, seconds: float) -> Fact[Seconds]:
    """Time of an operation too small to compute anything, forward and backward each counted."""
    x = torch.ones(16, device=where.torch_name, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(_CHAIN):
            y = y * 1.0
        torch.autograd.grad(y, x, x)

    taken = sample({0: chain}, seconds=seconds, longest=math.inf, finish=where.finish)[0]
    return Fact(
        value=Seconds(taken.seconds / (2 * _CHAIN)).rounded(),
        basis="measured",
        source=f"a chain of {_CHAIN} products of 16 numbers, forward and backward",
    )


def attention(
    where: Target, sets: tuple[KernelSet, ...], *, seconds: float
) -> tuple[list[AttentionCurve], list[Sample]]:
    """Causal attention by each kernel set and precision."""
    trials: dict[object, Trial] = {}
    pairs = trained(sets)
    for (kernels, precision), shape in itertools.product(pairs, _ATTENTION):
        rows, positions, width = shape
        with torch.device(where.torch_name):
            both = attention_trial(
                kernels=kernels, precision=precision, rows=rows, positions=positions,
                head_width=width,
            )  # fmt: skip
        for direction, run in enumerate(both):
            trials[kernels, precision, shape, direction] = run
    taken = sample(trials, seconds=seconds, longest=seconds / 10, finish=where.finish)

    def points(kernels: KernelSet, precision: Trained) -> tuple[AttentionPoint, ...]:
        return tuple(
            AttentionPoint(
                rows=shape[0], positions=shape[1], head_width=shape[2],
                forward=_significant(taken[kernels, precision, shape, 0].seconds),
                backward=_significant(taken[kernels, precision, shape, 1].seconds),
            )
            for shape in _ATTENTION
            if all((kernels, precision, shape, direction) in taken for direction in (0, 1))
        )  # fmt: skip

    curves = [
        AttentionCurve(kernels=kernels, precision=precision, points=points(kernels, precision))
        for kernels, precision in pairs
    ]
    return curves, list(taken.values())


def pointwise(
    where: Target, sets: tuple[KernelSet, ...], *, seconds: float, memory_bytes: float
) -> tuple[list[KernelCurve], list[Sample]]:
    """Every memory-bound operation by each kernel set and precision.

    One operation at a time, since the operands of all together would fill a small memory.
    """
    curves: list[KernelCurve] = []
    samples: list[Sample] = []
    for operation in OPERATIONS:
        trials: dict[object, Trial] = {}
        sizes = (*_ELEMENTS, *((_ELEMENTS_PARAMETERS,) if operation in _ON_PARAMETERS else ()))
        sizes = tuple(size for size in sizes if size * _BYTES_AN_ELEMENT < memory_bytes)
        for (kernels, precision), size in itertools.product(trained(sets), sizes):
            with torch.device(where.torch_name):
                both = trial(operation, kernels=kernels, precision=precision, elements=size)
            for direction, run in enumerate(both):
                trials[kernels, precision, size, direction] = run
        share = seconds / len(OPERATIONS)
        taken = sample(trials, seconds=share, longest=share / 5, finish=where.finish)
        curves += _curves(operation, taken, sets, sizes)
        samples += taken.values()
    return curves, samples


def prepare(sets: tuple[KernelSet, ...]) -> None:
    """Run each set once: the first time, native kernels are compiled."""
    for kernels in sets:
        trial("squared_norm", kernels=kernels, precision="bf16", elements=64)[0]()


def trained(sets: tuple[KernelSet, ...]) -> list[tuple[KernelSet, Trained]]:
    """Each kernel set with each precision that it trains in."""
    return [(kernels, precision) for kernels in sets for precision in _PRECISIONS[kernels]]


def _curves(
    operation: str,
    taken: dict[object, Sample],
    sets: tuple[KernelSet, ...],
    sizes: tuple[int, ...],
) -> list[KernelCurve]:
    curves: list[KernelCurve] = []
    for kernels, precision in trained(sets):
        points = tuple(
            KernelPoint(
                elements=size,
                forward=_significant(taken[kernels, precision, size, 0].seconds),
                backward=_significant(taken[kernels, precision, size, 1].seconds),
            )
            for size in sizes
            if all((kernels, precision, size, direction) in taken for direction in (0, 1))
        )
        curves.append(
            KernelCurve(
                operation=operation, kernels=kernels, precision=precision, compiled=False,
                points=points,
            )
        )  # fmt: skip
    return curves


def _significant(seconds: float) -> float:
    return 0.0 if seconds < _NOTHING_SECONDS else float(f"{seconds:.4g}")
