"""Whole blocks in stacks, which pay for what lies between operations and for cold memory."""

from __future__ import annotations

import itertools
import time
from statistics import median

import torch

from narrows.hardware.measure.device import Target
from narrows.hardware.measure.operations import Trained, trained
from narrows.kernels.blocks import BlockShape, block_trial
from narrows.kernels.load import load
from narrows.spec.machine import BlockCurve, BlockKind, BlockPoint, KernelSet

_KINDS: tuple[BlockKind, ...] = ("gpt2", "llama")
_LAYERS = 2
_SHAPES = ((64, 32, 4, 64), (384, 64, 4, 256), (768, 64, 1, 1024))
"""(width, head width, sequences, positions): launches matter, then caches, then neither."""
_RUNS_LEAST = 3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def curves(
    where: Target, sets: tuple[KernelSet, ...], precisions: tuple[Trained, ...], *, seconds: float
) -> tuple[BlockCurve, ...]:
    """The median of several runs: what a step can count on, not what it can do at best."""
    both = [each for each in trained(sets) if each[1] in precisions]
    chosen = list(itertools.product(both, _KINDS))
    each = seconds / (len(chosen) * len(_SHAPES))
    return tuple(
        BlockCurve(
            kind=kind, kernels=kernels, precision=precision,
            points=tuple(
                _point(where, kernels, precision, BlockShape(kind, _LAYERS, *shape), each)
                for shape in _SHAPES
            ),
        )
        for (kernels, precision), kind in chosen
    )  # fmt: skip


def _point(
    where: Target, kernels: KernelSet, precision: str, shape: BlockShape, seconds: float
) -> BlockPoint:
    run = block_trial(shape, load(kernels), _DTYPES[precision], where.torch_name)
    run()
    taken: list[float] = []
    while len(taken) < _RUNS_LEAST or sum(taken) < seconds:
        started = time.perf_counter()
        run()
        where.finish()
        taken.append(time.perf_counter() - started)
    return BlockPoint(
        width=shape.width, head_width=shape.head_width, sequences=shape.sequences,
        positions=shape.positions, seconds=float(f"{median(taken) / shape.layers:.4g}"),
    )  # fmt: skip
