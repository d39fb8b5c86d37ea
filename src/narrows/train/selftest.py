"""Whether the loss depends on how a batch is laid out, which it must not: `narrows doctor` asks.

The same examples, alone in padded rows or packed, in one micro-batch or in several, computed by
what trains; each layout's loss and gradients beside the first one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from narrows.data import bins
from narrows.data.batch import Batch
from narrows.kernels.load import load
from narrows.parallel.mesh import ranks_of
from narrows.parallel.running import Tokens
from narrows.parallel.split import Making, split
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec, llama
from narrows.train.step import rows_of

TOLERANCE = 1e-5
_CONTEXT, _VOCABULARY, _EXAMPLES = 48, 64, 12


class Difference(NamedTuple):
    """How far a layout's loss and gradients are from those of examples alone, one at a time."""

    name: str
    relative: float


def differences(spec: ModelSpec | None = None, seed: int = 0) -> list[Difference]:
    """Of every layout but the first, the larger of the two relative differences."""
    spec = spec or llama(
        layers=2, width=32, heads=4, kv_heads=2, vocabulary=_VOCABULARY, context=_CONTEXT
    )
    found = [(name, *_outcome(spec, batch, micro)) for name, batch, micro in _layouts(seed)]
    _, loss, gradients = found[0]
    scale = max(float(each.abs().max()) for each in gradients)
    return [
        Difference(
            name,
            max(
                abs(other - loss) / abs(loss),
                max(
                    float((mine - theirs).abs().max()) / scale
                    for mine, theirs in zip(own, gradients, strict=True)
                ),
            ),
        )
        for name, other, own in found[1:]
    ]  # fmt: skip


def _layouts(seed: int) -> Iterator[tuple[str, Batch, int]]:
    """Names, rows, and how many of them are a micro-batch."""
    drawn = np.random.default_rng(seed)
    lengths = drawn.integers(2, _CONTEXT, _EXAMPLES).tolist()
    tokens = [drawn.integers(0, _VOCABULARY, length) for length in lengths]
    told = [drawn.random(length) < 0.7 for length in lengths]
    alone = _rows([[each] for each in range(_EXAMPLES)], tokens, told)
    packed = _rows(bins.packed(lengths, _CONTEXT), tokens, told)
    yield "alone, one at a time", alone, 1
    yield "alone, all at once", alone, _EXAMPLES
    yield "alone, in fives", alone, 5
    yield "packed, all at once", packed, _EXAMPLES
    yield "packed, one row at a time", packed, 1
    yield "packed, in threes", packed, 3


def _rows(shared: list[list[int]], tokens: list[np.ndarray], told: list[np.ndarray]) -> Batch:
    inputs_BT = np.zeros((len(shared), _CONTEXT), dtype=np.int64)
    targets_BT = np.full_like(inputs_BT, -1)
    documents = []
    for row, own in enumerate(shared):
        at = 0
        for each in own:
            size = len(tokens[each])
            inputs_BT[row, at : at + size] = tokens[each]
            said = np.where(told[each][1:], tokens[each][1:], -1)
            targets_BT[row, at : at + size - 1] = said
            at += size
        sizes = [len(tokens[each]) for each in own]
        documents.append((*sizes, *([_CONTEXT - at] if at < _CONTEXT else [])))
    values = tuple((0.0,) * len(own) for own in shared)
    return Batch(inputs_BT, targets_BT, tuple(documents), values)


def _outcome(spec: ModelSpec, batch: Batch, micro: int) -> tuple[float, list[torch.Tensor]]:
    layout = Layout(
        micro_batch=micro, accumulation=-(-len(batch.inputs_BT) // micro), precision="fp32",
        recompute="none", compile=False, kernels="torch", threads=1, loss_chunk=32,
    )  # fmt: skip
    cpu = torch.device("cpu")
    making = Making(load("torch"), None, cpu, torch.float32, objective=Tokens(some=True))
    mine = split(spec, layout, ranks_of(layout, cpu), making, seed=1)
    loss = float(mine.run(rows_of(batch, cpu), layout.loss_chunk))
    gradients = [each.grad for each in mine.parameters().values()]
    return loss, [each for each in gradients if each is not None]
