"""A published decoder with its matrices in groups of 4 or 8 bits, or in bf16, for the kernels that
compute so.

    packed(original) → PackedModel;   PackedWriter(...).decoding(tokens_max) → Decoding

What its file has in such groups is taken as it lies; all else is rounded, here and aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from narrows.adapt.peft_reading import TheirAdapter
from narrows.data.published import Words
from narrows.infer import beside
from narrows.infer.decoding import Cached, Decoding
from narrows.infer.generate import ServingPrecision
from narrows.kernels.arrays import Floats
from narrows.kernels.build import obstacle
from narrows.kernels.decoder import Activation, PackedDecoder, PackedLayer, PackedModel
from narrows.kernels.interface import Heads
from narrows.kernels.packing import Slab, pack
from narrows.kernels.panels import GROUP, WHOLE, Packed
from narrows.model.grouped import grouped
from narrows.model.opening import Original
from narrows.model.positions import angles
from narrows.model.reading import Reader
from narrows.model.writing import parameters
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision
from narrows.spec.model import (
    GELU,
    GeGLU,
    LayerNorm,
    Learned,
    ModelSpec,
    ReLU,
    Rotary,
    SquaredReLU,
    SwiGLU,
)

Talk = Callable[[str], None]
Bits = Literal[4, 8, 16]
"""What matrices are rounded to; 16 is bf16."""
_HEAD_WIDTH_MOST = 256
_CHUNK = 512
"""Tokens of a prompt that are read at once."""


@final
class PackedWriter:
    """A packed model ready to write, its tokenizer, and its chat template where it has one; and
    adapters by their names, None of what is written where none is asked for.
    """

    def __init__(
        self, original: Original, words: Words, bits: Bits, talk: Talk,
        cache: CachePrecision = "bf16",
        adapters: Mapping[str | None, TheirAdapter] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.cache: CachePrecision = cache
        self.spec, self.tokenizer, self.template = original.spec, words.tokenizer, words.template
        self.model = packed(original, bits=bits, talk=talk)
        self.adapters = {name: beside.packed(each) for name, each in adapters.items()}
        most = self.model.layers[0].up.bits
        self.precision: ServingPrecision = (
            "bf16" if most == WHOLE else "int8" if most >= 6 else "int4"
        )  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """Of all matrices that a text is written by where it asks for no adapter."""
        return self.model.nbytes + self.adapter_bytes

    @property
    def adapter_bytes(self) -> int:
        """Of those that are beside the model's own."""
        own = self.adapters.get(None)
        return own.nbytes if own else 0

    def decoder(self, room: int, rows: int) -> PackedDecoder:
        """What computes it over its kind of cache, of `room` positions, `rows` tokens at once."""
        return PackedDecoder(
            self.model, room=room, rows=rows, threads=torch.get_num_threads(), kept=self.cache
        )

    def decoding(self, tokens_max: int) -> Decoding:
        """A sequence to begin, of at most so many tokens."""
        return Decoding(self.spec.context, tokens_max, lambda room: _Packed(self, room))


@final
class _Packed(Cached):
    def __init__(self, writer: PackedWriter, room: int) -> None:
        self._decoder = writer.decoder(room, rows=min(room, _CHUNK))
        self._cache, self._adapter = self._decoder.cache(), writer.adapters.get(None)

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    def read(self, tokens: Sequence[int], start: int) -> Floats:
        return self._decoder.read(self._cache, tokens, start, self._adapter)


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


def unpackable(spec: ModelSpec) -> str | None:
    """Why the packed decoder does not compute this model, or None where it does."""
    centred, both = isinstance(spec.norm, LayerNorm), spec.block_norms == "both"
    simple = (
        (activation(spec) is not None, "its feed-forward has an activation that is not known"),
        (isinstance(spec.positions, Rotary | Learned), "its positions are not rotary or learned"),
        (spec.block_norms in ("before", "both") and not (centred and both),
         "its norms stand not before each half"),
        (spec.query_norm != "whole", "it norms all queries as one"),
        (spec.causal and spec.final_norm and not spec.classes, "it is no causal decoder"),
        (not spec.head_bias, "its head has a bias"),
        (not any((spec.experts, spec.latent, spec.sinks, spec.encoder_layers,
                  spec.embedding_norm, spec.token_types)),
         "it has experts, sinks or a second input"),
    )  # fmt: skip
    for holds, why in simple:
        if not holds:
            return why
    widths = (spec.width, spec.feed_forward_width, spec.head_width)
    if any(width % GROUP for width in widths) or spec.head_width > _HEAD_WIDTH_MOST:
        return f"its widths {', '.join(map(str, widths))} are no multiples of {GROUP}"
    return obstacle()


def packed(original: Original, *, bits: Bits = 8, talk: Talk = lambda text: None) -> PackedModel:
    """The model; matrices that do not lie in groups are rounded to `bits`. Raises BadInput where
    the packed decoder does not compute it.
    """
    spec = original.spec
    reason = unpackable(spec)
    if reason:
        raise BadInput(f"{original.path} cannot be packed: {reason}", hint="use --precision bf16")
    reading = _Reading(original, bits)
    table = reading.matrix("tokens")
    positions, learned = spec.positions, None
    if isinstance(positions, Learned):
        learned = reading.values("positions.weight")[positions.extra :]
    layers = tuple(_layer(reading, spec, index) for index in range(spec.layers))
    head = table if spec.tied_embeddings else reading.matrix("head")
    if reading.rounded:
        talk(f"{reading.rounded} of {reading.read} matrices were rounded to {bits} bits")

    def turns(positions: int, windowed: bool) -> tuple[Floats, Floats]:
        cos, sin = angles(spec, positions, torch.device("cpu"), windowed=windowed)
        return cos.contiguous().numpy(), sin.contiguous().numpy()

    scale = spec.head_width**-0.5 if spec.query_scale is None else spec.query_scale
    return PackedModel(
        layers=layers,
        heads=Heads(spec.heads, spec.kv_heads, spec.head_width),
        epsilon=spec.norm.epsilon,
        query_scale=scale,
        embedding_scale=spec.embedding_scale,
        logit_scale=spec.logit_scale,
        angles=turns if isinstance(positions, Rotary) else None,
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
    def __init__(self, original: Original, bits: Bits) -> None:
        self._shapes = parameters(original.spec)
        self._reader = Reader(self._shapes, original.spec, original.naming, original.tensors)
        self._bits, self._width = bits, original.spec.width
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
        return pack(pieces, self._bias(name))


def activation(spec: ModelSpec) -> Activation | None:
    """What its feed-forward does, as the decoder calls it; None where it does not know it."""
    kind = spec.feed_forward
    if isinstance(kind, GELU):
        return None if kind.exact else "gelu"
    names: dict[type, Activation] = {
        SwiGLU: "silu", GeGLU: "gelu", ReLU: "relu", SquaredReLU: "squared_relu"
    }  # fmt: skip
    return names.get(type(kind))
