"""What a model does that answers, not trains: products of few rows, attention over a cache."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Hashable
from statistics import median
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from narrows.hardware.measure.device import Target
from narrows.hardware.measure.operations import Trained
from narrows.hardware.measure.sampling import Sample, Trial, sample
from narrows.kernels.blocks import BlockShape, extend_trial
from narrows.kernels.load import load
from narrows.kernels.trials import CachedShape, cached_trial, streamed_trial, trial
from narrows.spec.machine import (
    BlockKind,
    CachedCurve,
    CachedPoint,
    ExtendedCurve,
    ExtendedPoint,
    KernelCurve,
    KernelPoint,
    StreamedCurve,
    StreamedPoint,
)
from narrows.spec.units import Bytes, Seconds

K = TypeVar("K", bound=Hashable)
_DTYPES: dict[Trained, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ROWS = (1, 2, 4, 8, 32, 128)
_WEIGHTS = ((1152, 384), (384, 1536), (768, 768), (2304, 768), (768, 3072))
"""(outputs, inputs) of a block's weights, and below those of a head."""
_ROWS_NEW = (37, 43, 53)
_HEAD, _HEAD_ROWS = (32_768, 768), (1, 2, 4, 8)
_WORKING_SETS = (12 << 20, 24 << 20, 40 << 20, 160 << 20)
"""What a processor's last cache holds, what a large one does, what most do not, and none does."""
_CACHES_SETS = (24 << 20, 48 << 20, 160 << 20)
_MEMORY_SHARE = 0.25
_DECODES = (
    CachedShape(1, 6, 1, 64, 1, 128), CachedShape(1, 12, 1, 64, 1, 256),
    CachedShape(1, 12, 1, 64, 1, 1024), CachedShape(8, 12, 1, 64, 1, 128),
    CachedShape(4, 12, 1, 64, 1, 1024), CachedShape(1, 3, 3, 64, 1, 128),
    CachedShape(1, 3, 3, 64, 1, 1024), CachedShape(8, 3, 3, 64, 1, 512),
)  # fmt: skip
_PREFILLS = (
    CachedShape(1, 12, 1, 64, 32, 32), CachedShape(1, 12, 1, 64, 128, 128),
    CachedShape(1, 12, 1, 64, 512, 512), CachedShape(1, 6, 1, 64, 1024, 1024),
    CachedShape(4, 6, 1, 64, 256, 256), CachedShape(1, 3, 3, 64, 512, 512),
    CachedShape(1, 8, 1, 128, 256, 256),
)  # fmt: skip
_VOCABULARIES = (64, 4096, 65_536)
_TIMES = 4
_KINDS: tuple[BlockKind, ...] = ("gpt2", "llama")


class _Block(NamedTuple):
    width: int
    head_width: int
    layers: int
    queries: int
    keys: int


_BLOCKS = (
    _Block(64, 32, 2, 1, 64), _Block(384, 64, 12, 1, 256), _Block(768, 64, 4, 1, 512),
    _Block(64, 32, 1, 32, 32), _Block(384, 64, 1, 64, 64), _Block(768, 64, 1, 64, 64),
    _Block(512, 64, 1, 128, 128),
)  # fmt: skip
"""None takes long: on shared cores a long trial is never left alone. Of wide ones for single tokens
so many that no cache holds them: what lies between operations is told by the rest.
"""


class Curves(NamedTuple):
    """All of this file's, and the samples that they are made of."""

    streamed: tuple[StreamedCurve, ...]
    cached: tuple[CachedCurve, ...]
    extended: tuple[ExtendedCurve, ...]
    draw: tuple[KernelCurve, ...]
    samples: list[Sample]


def curves(
    where: Target, precisions: tuple[Trained, ...], *, seconds: float, memory_bytes: float
) -> Curves:
    """By torch's own kernels, which answer in every precision."""
    samples: list[Sample] = []
    streamed: list[StreamedCurve] = []
    for precision in precisions:
        products = _streamed(where, precision, 0.25 * seconds, memory_bytes, samples)
        making = _making(where, _DTYPES[precision])
        streamed.append(StreamedCurve(precision=precision, points=products, making=making))
    return Curves(
        streamed=tuple(streamed),
        cached=_cached(where, precisions, 0.15 * seconds, memory_bytes, samples),
        extended=_extended(where, precisions, 0.32 * seconds, samples),
        draw=_draw(where, precisions, 0.03 * seconds, samples),
        samples=samples,
    )


def _streamed(
    where: Target, precision: Trained, seconds: float, memory_bytes: float, samples: list[Sample]
) -> tuple[StreamedPoint, ...]:
    sets = [size for size in _WORKING_SETS if size < _MEMORY_SHARE * memory_bytes]
    if not sets:
        return ()
    kind = _DTYPES[precision]
    # Of its own memory each: what one set has just read would be cached for another.
    rings = torch.full((sum(sets) // kind.itemsize,), 0.01, dtype=kind, device=where.torch_name)
    parts = torch.split(rings, [size // kind.itemsize for size in sets])
    apart = dict(zip(sets, parts, strict=True))
    wanted = [(rows, *weights, size)
              for rows, weights, size in itertools.product(_ROWS, _WEIGHTS, sets)]  # fmt: skip
    wanted += [(rows, *_HEAD, sets[-1]) for rows in _HEAD_ROWS]
    trials: dict[tuple[int, int, int, Bytes], Trial] = {}
    for m, n, k, size in wanted:
        if n * k * kind.itemsize > size:
            continue
        count, run = streamed_trial((m, n, k), apart[size])
        trials[m, n, k, Bytes(count * n * k * kind.itemsize)] = run
    taken = _by_itself(where, trials, seconds, samples)
    return tuple(
        StreamedPoint(m=m, n=n, k=k, working_set=size, seconds=_significant(found.usual))
        for (m, n, k, size), found in taken.items()
    )


def _by_itself(
    where: Target, trials: dict[K, Trial], seconds: float, samples: list[Sample]
) -> dict[K, Sample]:
    """Each trial in a row, so that what it reads is in a cache if it fits one: in rounds of all
    trials the others would push it out. Several times, some time apart, of which the quicker of
    those in the middle counts: what it usually takes. The very least is what a cache gives by luck
    that is shared with strangers, and no answer has that luck with all of its operations.
    """
    turns: dict[K, list[Sample]] = {key: [] for key in trials}
    share = seconds / (_TIMES * len(trials))
    for _ in range(_TIMES):
        for key, run in trials.items():
            own = {key: run}
            taken = sample(own, seconds=share, longest=math.inf, finish=where.finish)[key]
            turns[key].append(taken)
    found = {
        key: sorted(each, key=lambda one: one.usual)[(_TIMES - 1) // 2]
        for key, each in turns.items()
    }
    samples += found.values()
    return found


def _making(where: Target, kind: torch.dtype) -> Seconds:
    """Median over products whose rows nothing here has had, each against the second such."""
    more: list[float] = []
    for rows, (n, k) in itertools.product(_ROWS_NEW, _WEIGHTS):
        x_MK = torch.ones(rows, k, dtype=kind, device=where.torch_name)
        weights_NK = torch.ones(n, k, dtype=kind, device=where.torch_name)
        taken: list[float] = []
        for _ in range(2):
            started = time.perf_counter()
            F.linear(x_MK, weights_NK)
            where.finish()
            taken.append(time.perf_counter() - started)
        more.append(taken[0] - taken[1])
    return Seconds(max(0.0, median(more))).rounded(3)


def _cached(
    where: Target,
    precisions: tuple[Trained, ...],
    seconds: float,
    memory_bytes: float,
    samples: list[Sample],
) -> tuple[CachedCurve, ...]:
    trials: dict[tuple[Trained, Bytes, CachedShape], Trial] = {}
    fitting = tuple(size for size in _CACHES_SETS if size < _MEMORY_SHARE * memory_bytes)
    sets = fitting or _CACHES_SETS[:1]
    for precision in precisions:
        kind = _DTYPES[precision]
        room = torch.full(
            (max(sets) // kind.itemsize,), 0.01, dtype=kind, device=where.torch_name
        )  # fmt: skip
        for size, shape in itertools.product(sets, (*_DECODES, *_PREFILLS)):
            count = size // (2 * shape.values * kind.itemsize)
            if count:
                caches = room[: count * 2 * shape.values]
                lies = Bytes(caches.numel() * kind.itemsize)
                trials[precision, lies, shape] = cached_trial(shape, caches)
    taken = _by_itself(where, trials, seconds, samples)
    return tuple(
        CachedCurve(
            precision=precision,
            points=tuple(
                CachedPoint(**shape._asdict(), seconds=_significant(found.usual), working_set=lies)
                for (own, lies, shape), found in taken.items()
                if own == precision
            ),
        )
        for precision in precisions
    )


def _extended(
    where: Target, precisions: tuple[Trained, ...], seconds: float, samples: list[Sample]
) -> tuple[ExtendedCurve, ...]:
    found: list[ExtendedCurve] = []
    kernels = load("torch")
    for precision, kind in itertools.product(precisions, _KINDS):
        trials: dict[_Block, Trial] = {}
        for block in _BLOCKS:
            shape = BlockShape(kind, block.layers, block.width, block.head_width, 1, block.keys)
            dtype = _DTYPES[precision]
            trials[block] = extend_trial(shape, block.queries, kernels, dtype, where.torch_name)
        taken = _by_itself(where, trials, seconds / 4, samples)
        points = tuple(
            ExtendedPoint(**block._asdict(), seconds=_significant(each.usual / block.layers))
            for block, each in taken.items()
        )
        found.append(ExtendedCurve(kind=kind, precision=precision, points=points))
    return tuple(found)


def _draw(
    where: Target, precisions: tuple[Trained, ...], seconds: float, samples: list[Sample]
) -> tuple[KernelCurve, ...]:
    trials: dict[tuple[Trained, int], Trial] = {}
    for precision, size in itertools.product(precisions, _VOCABULARIES):
        with torch.device(where.torch_name):
            run, _ = trial("draw", kernels="torch", precision=precision, elements=size)
        trials[precision, size] = run
    taken = sample(trials, seconds=seconds, longest=math.inf, finish=where.finish)
    samples += taken.values()
    return tuple(
        KernelCurve(
            operation="draw", kernels="torch", precision=precision, compiled=False,
            points=tuple(
                KernelPoint(elements=size, forward=_significant(found.seconds), backward=0.0)
                for (own, size), found in taken.items()
                if own == precision
            ),
        )
        for precision in precisions
    )  # fmt: skip


def _significant(seconds: float) -> float:
    return float(f"{seconds:.4g}")
