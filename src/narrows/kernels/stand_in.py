"""A packed decoder, of noughts and ones, for `hardware` to time a step of.

    packed_trials(shapes, threads) → each with its step, to be called

What codes are does not change what a step takes; where they lie does: each layer has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from narrows.kernels.decoder import PackedDecoder, PackedLayer, PackedModel, Run, Turning
from narrows.kernels.interface import Heads
from narrows.kernels.packing import pack
from narrows.kernels.panels import GROUP, WHOLE, Packed
from narrows.spec.machine import CachePrecision
from narrows.spec.model import ModelSpec, llama

_HEAD_WIDTH, _VOCABULARY = 64, 16


class PackedShape(NamedTuple):
    """What a step is made of: `queries` new positions of each of `sequences` behind `past`, which
    are kept in `cache`; `group` heads share theirs.
    """

    bits: int
    layers: int
    width: int
    sequences: int
    queries: int
    past: int
    cache: CachePrecision = "bf16"
    group: int = 1

    @property
    def spec(self) -> ModelSpec:
        """The same blocks as a model, whose head does not matter."""
        heads = self.width // _HEAD_WIDTH
        return llama(
            layers=self.layers, width=self.width, heads=heads, kv_heads=heads // self.group,
            vocabulary=_VOCABULARY, context=self.past + self.queries,
        )  # fmt: skip


def packed_trials(
    shapes: list[PackedShape], threads: int
) -> Iterator[tuple[PackedShape, Callable[[], object]]]:
    """A step of each; by a decoder for each model and kind of cache that follow each other."""
    room = max(each.past + each.queries for each in shapes)
    rows = max(each.sequences * each.queries for each in shapes)
    for _, of_model in groupby(shapes, key=lambda e: (e.bits, e.layers, e.width, e.group)):
        alike = list(of_model)
        model = _model(alike[0])
        for kept, same in groupby(alike, key=lambda each: each.cache):
            decoder = PackedDecoder(model, room=room, rows=rows, threads=threads, kept=kept)
            yield from _of_one(decoder, list(same))


def _of_one(
    decoder: PackedDecoder, shapes: list[PackedShape]
) -> Iterator[tuple[PackedShape, Callable[[], object]]]:
    caches = [decoder.cache() for _ in range(max(each.sequences for each in shapes))]
    for cache in caches:
        cache[:] = 0
    for shape in shapes:
        runs = [Run(cache, shape.past, shape.queries) for cache in caches[: shape.sequences]]
        count = shape.sequences * shape.queries
        wanted = range(shape.queries - 1, count, shape.queries)
        yield shape, _step(decoder, runs, [1] * count, list(wanted))


def _step(
    decoder: PackedDecoder, runs: list[Run], tokens: list[int], wanted: list[int]
) -> Callable[[], object]:
    return lambda: decoder.step(runs, tokens, wanted)


def _model(shape: PackedShape) -> PackedModel:
    spec = shape.spec
    heads = Heads(spec.heads, spec.kv_heads, spec.head_width)
    D, F = spec.width, spec.feed_forward_width
    one_D = np.ones(D, np.float32)
    table = _matrix(shape.bits, spec.vocabulary, D)
    layers = tuple(
        PackedLayer(
            norm_D=one_D, query_norm_H=None, key_norm_H=None, second_norm_D=one_D,
            qkv=_matrix(shape.bits, (spec.heads + 2 * spec.kv_heads) * spec.head_width, D),
            out=_matrix(shape.bits, D, D), up=_matrix(shape.bits, 2 * F, D),
            down=_matrix(shape.bits, D, F),
        )
        for _ in range(spec.layers)
    )  # fmt: skip
    still_H = np.zeros(spec.head_width // 2)
    return PackedModel(
        layers=layers, heads=heads, epsilon=1e-5, query_scale=1.0, embedding_scale=1.0,
        logit_scale=1.0, table=table, norm_D=one_D, head=table,
        turning=Turning(still_H),
    )  # fmt: skip


def _matrix(bits: int, rows: int, columns: int) -> Packed:
    if bits == WHOLE:
        values = torch.ones(rows, columns, dtype=torch.bfloat16)
        return pack([(rows, [(bits, values, None, None, None)])])
    codes = torch.ones(rows, columns, dtype=torch.uint8)
    scales = torch.full((rows, columns // GROUP), 1e-3, dtype=torch.float16)
    least = torch.zeros_like(scales) if bits == 4 else None
    return pack([(rows, [(bits, codes, scales, least, None)])])
