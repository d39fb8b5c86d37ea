"""A decoder whose matrices are packed, by the kernels that compute so, ready to write.

PackedWriter(spec, words, model, cache, adapters).decoding(tokens_max) → Decoding
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import final

from narrows.data.published import Words
from narrows.hardware.find import threads
from narrows.infer.decoding import Cached, Decoding
from narrows.infer.generate import ServingPrecision
from narrows.infer.packed_core import PackedCore
from narrows.kernels.arrays import Floats
from narrows.kernels.build import obstacle
from narrows.kernels.decoder import Activation, PackedDecoder, PackedModel
from narrows.kernels.low_rank import PackedAdapter
from narrows.kernels.panels import GROUP, WHOLE
from narrows.plan.packed import packable
from narrows.plan.words import count
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
from narrows.spec.units import Bytes

_HEAD_WIDTH_MOST = 256
_CHUNK = 512
"""Tokens of a prompt that are read at once."""


@final
class PackedWriter:
    """A packed model ready to write, its tokenizer, and its chat template where it has one; and
    adapters by their names, None of what is written where none is asked for.
    """

    def __init__(
        self, spec: ModelSpec, words: Words, model: PackedModel, cache: CachePrecision = "bf16",
        adapters: Mapping[str | None, PackedAdapter] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.cache: CachePrecision = cache
        self.spec, self.tokenizer, self.template = spec, words.tokenizer, words.template
        self.model, self.adapters = model, adapters
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

    def told(self, called: str) -> str:
        """What it is, as a line."""
        size, many = f"{count(self.spec.parameters)} parameters", threads()
        matrices = f"{self.precision} ({Bytes(self.weight_bytes).text()})"
        return f"{called}, {size}, {matrices}, {many} thread{'s'[: many > 1]}"

    def decoder(self, room: int, rows: int) -> PackedDecoder:
        """What computes it over its kind of cache, of `room` positions, `rows` tokens at once."""
        return PackedDecoder(
            self.model, room=room, rows=rows, threads=threads(), kept=self.cache
        )  # fmt: skip

    def decoding(self, tokens_max: int) -> Decoding:
        """A sequence to begin, of at most so many tokens."""
        return Decoding(self.spec.context, tokens_max, lambda room: _Packed(self, room))

    def core(self, slots: int, context: int) -> PackedCore:
        """What computes so many texts at once."""
        return PackedCore(self.model, slots, context, self.cache, self.adapters)


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
    if not packable(spec) or spec.head_width > _HEAD_WIDTH_MOST:
        widths = (spec.width, spec.feed_forward_width, spec.head_width)
        return f"its widths {', '.join(map(str, widths))} are no multiples of {GROUP}"
    return obstacle()


def activation(spec: ModelSpec) -> Activation | None:
    """What its feed-forward does, as the decoder calls it; None where it does not know it."""
    kind = spec.feed_forward
    if isinstance(kind, GELU):
        return None if kind.exact else "gelu"
    names: dict[type, Activation] = {
        SwiGLU: "silu", GeGLU: "gelu", ReLU: "relu", SquaredReLU: "squared_relu"
    }  # fmt: skip
    return names.get(type(kind))
