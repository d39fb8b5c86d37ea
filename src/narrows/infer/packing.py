"""A published decoder's matrices as the packed decoder computes with them: in groups of 4 or 8
bits, or in bf16.

    packed(original, bits=8) → PackedModel

What its file has in such groups is taken as it lies; all else is rounded, here and aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from narrows.infer.generate import ServingPrecision
from narrows.infer.packed import activation, unpackable
from narrows.kernels.arrays import Floats
from narrows.kernels.decoder import PackedLayer, PackedModel, Turning
from narrows.kernels.interface import Heads
from narrows.kernels.packing import Slab, pack
from narrows.kernels.panels import WHOLE, Packed
from narrows.model.grouped import grouped
from narrows.model.opening import Original
from narrows.model.positions import frequencies
from narrows.model.reading import Reader
from narrows.model.writing import parameters
from narrows.spec.errors import BadInput
from narrows.spec.model import LayerNorm, Learned, ModelSpec, Rotary

Talk = Callable[[str], None]
Keep = Callable[[Packed], Packed]
Bits = Literal[4, 8, 16]
"""What matrices are rounded to; 16 is bf16."""


def bits_for(original: Original, precision: ServingPrecision | None) -> Bits | None:
    """What matrices are rounded to that are not in groups; None where torch computes them."""
    if precision == "fp32":
        return None
    if precision == "bf16" or (precision is None and not packs(original)):
        return 16 if packs_bf16(original) else None
    return 4 if precision == "int4" else 8


def packs(original: Original) -> bool:
    """Whether the file has its matrices in groups that are computed with as they lie."""
    if unpackable(original.spec):
        return False
    shapes = parameters(original.spec)
    reader = Reader(shapes, original.spec, original.naming, original.tensors)
    return reader.grouped("blocks.0.up.weight")


def packs_bf16(original: Original) -> bool:
    """Whether the packed decoder computes it in bf16: here that is quicker than torch in any
    precision.
    """
    return not torch.accelerator.is_available() and not unpackable(original.spec)


def packed(
    original: Original, *, bits: Bits = 8, talk: Talk = lambda text: None,
    keep: Keep = lambda matrix: matrix,
) -> PackedModel:  # fmt: skip
    """The model; matrices that do not lie in groups are rounded to `bits`, and each is put away by
    `keep` before the next is made. Raises BadInput where the packed decoder does not compute it.
    """
    spec = original.spec
    reason = unpackable(spec)
    if reason:
        raise BadInput(f"{original.path} cannot be packed: {reason}", hint="use --precision bf16")
    reading = _Reading(original, bits, keep)
    table = reading.matrix("tokens")
    positions, learned = spec.positions, None
    if isinstance(positions, Learned):
        learned = reading.values("positions.weight")[positions.extra :]
    layers = tuple(_layer(reading, spec, index) for index in range(spec.layers))
    head = table if spec.tied_embeddings else reading.matrix("head")
    if reading.rounded:
        talk(f"{reading.rounded} of {reading.read} matrices were rounded to {bits} bits")

    scale = spec.head_width**-0.5 if spec.query_scale is None else spec.query_scale
    return PackedModel(
        layers=layers,
        heads=Heads(spec.heads, spec.kv_heads, spec.head_width),
        epsilon=spec.norm.epsilon,
        query_scale=scale,
        embedding_scale=spec.embedding_scale,
        logit_scale=spec.logit_scale,
        turning=_turning(spec, windowed=False),
        turning_windowed=_turning(spec, windowed=True),
        table=table,
        norm_D=reading.scale("norm"),
        head=head,
        activation=activation(spec) or "silu",
        gated=spec.gated,
        centred=isinstance(spec.norm, LayerNorm),
        norm_bias_D=reading.bias("norm"),
        positions_SD=learned,
        score_cap=spec.score_cap,
        logit_cap=spec.logit_cap,
    )


def _turning(spec: ModelSpec, *, windowed: bool) -> Turning | None:
    if not isinstance(spec.positions, Rotary):
        return None
    speeds_H, growth = frequencies(spec, torch.device("cpu"), windowed=windowed)
    return Turning(np.asarray(speeds_H.numpy()), growth)


def _layer(reading: _Reading, spec: ModelSpec, index: int) -> PackedLayer:
    within = f"blocks.{index}."
    normed, twice = spec.query_norm is not None, spec.block_norms == "both"
    return PackedLayer(
        norm_D=reading.scale(f"{within}norm_attention"),
        query_norm_H=reading.values(f"{within}query_norms.query.weight") if normed else None,
        key_norm_H=reading.values(f"{within}query_norms.key.weight") if normed else None,
        qkv=reading.matrix(f"{within}qkv"),
        out=reading.matrix(f"{within}out"),
        second_norm_D=reading.scale(f"{within}norm_feed_forward"),
        up=reading.matrix(f"{within}up"),
        down=reading.matrix(f"{within}down"),
        out_norm_D=reading.values(f"{within}norm_attention_out.weight") if twice else None,
        down_norm_D=reading.values(f"{within}norm_feed_forward_out.weight") if twice else None,
        window=spec.window_of(index),
        norm_bias_D=reading.bias(f"{within}norm_attention"),
        second_norm_bias_D=reading.bias(f"{within}norm_feed_forward"),
    )


@final
class _Reading:
    def __init__(self, original: Original, bits: Bits, keep: Keep) -> None:
        self._shapes = parameters(original.spec)
        self._reader = Reader(self._shapes, original.spec, original.naming, original.tensors)
        self._bits, self._width, self._keep = bits, original.spec.width, keep
        self.read = self.rounded = 0

    def values(self, name: str) -> Floats:
        return np.asarray(self._values(name).numpy())

    def scale(self, name: str) -> Floats:
        """Of a norm of the stream; ones where it has none."""
        weight = f"{name}.weight"
        return self.values(weight) if weight in self._shapes else np.ones(self._width, np.float32)

    def bias(self, name: str) -> Floats | None:
        return self.values(f"{name}.bias") if f"{name}.bias" in self._shapes else None

    def _values(self, name: str) -> Tensor:
        return self._reader.read(name, self._shapes[name])

    def _bias(self, name: str) -> Tensor | None:
        return self._values(f"{name}.bias") if f"{name}.bias" in self._shapes else None

    def matrix(self, name: str) -> Packed:
        weight, shape = f"{name}.weight", self._shapes[f"{name}.weight"]
        self.read += 1
        pieces: list[tuple[int, Iterator[Slab]]]
        if self._bits == 16:
            values = torch.empty(shape, dtype=torch.bfloat16)
            self._reader.into(weight, values, write=False)
            self._reader.into(weight, values)
            pieces = [(shape[0], iter([(WHOLE, values, None, None, None)]))]
        elif self._reader.grouped(weight):
            pieces = list(self._reader.groups(weight, shape))
        else:
            self.rounded += 1
            rounded = grouped(self._values(weight), self._bits)
            pieces = [(shape[0], iter([rounded]))]
        return self._keep(pack(pieces, self._bias(name)))
