"""Steps of decoders packed in groups: one token, many texts' tokens, a prompt, a long past."""

from __future__ import annotations

import math

import torch

from narrows.hardware.measure.device import Target
from narrows.hardware.measure.sampling import Sample, sample
from narrows.kernels.build import obstacle
from narrows.kernels.stand_in import PackedShape, packed_trials
from narrows.spec.machine import CachePrecision, PackedCurve, PackedPoint

_BITS = (4, 8, 16)
_MODELS = ((2, 384), (14, 768))
"""(layers, width): one that lies in the caches, and one of 100 M weights that no cache holds."""
_STEPS: tuple[tuple[int, int, int, CachePrecision, int], ...] = (
    (1, 1, 0, "bf16", 1), (8, 1, 0, "bf16", 1), (32, 1, 0, "bf16", 1), (1, 256, 0, "bf16", 1),
    (1, 1, 1024, "bf16", 1), (1, 256, 1024, "bf16", 1),
    (1, 1, 1024, "int8", 1), (1, 256, 1024, "int8", 1),
    (1, 1, 0, "bf16", 3), (1, 1, 1024, "bf16", 3), (1, 1, 1024, "int8", 3),
)  # fmt: skip
"""(sequences, queries, past, cache, group)."""
_WEIGHT_BYTES = 3e8
"""Of the larger model, its codes unpacked while it is made among them."""


def curves(
    where: Target, *, seconds: float, memory_bytes: float
) -> tuple[tuple[PackedCurve, ...], list[Sample]]:
    """By the native kernels; none where there are no such, or the memory is small."""
    if where.kind != "cpu" or obstacle() or memory_bytes < 4 * _WEIGHT_BYTES:
        return (), []
    found: list[PackedCurve] = []
    samples: list[Sample] = []
    for bits in _BITS:
        points: list[PackedPoint] = []
        for layers, width in _MODELS:
            shapes = [PackedShape(bits, layers, width, *each) for each in _STEPS]
            trials = dict(packed_trials(shapes, torch.get_num_threads()))
            share = seconds / (len(_BITS) * len(_MODELS))
            taken = sample(trials, seconds=share, longest=math.inf, finish=where.finish)
            samples += taken.values()
            points += [
                PackedPoint(
                    layers=layers,
                    width=width,
                    sequences=shape.sequences,
                    queries=shape.queries,
                    past=shape.past,
                    cache=shape.cache,
                    group=shape.group,
                    seconds=float(f"{each.seconds:.4g}"),
                )
                for shape, each in taken.items()
            ]
        found.append(PackedCurve(bits=bits, points=tuple(points)))
    return tuple(found), samples
