"""A decoder's matrices as the packed decoder computes with them: in groups of 4 or 8 bits, or in
bf16.

    chosen(path, precision) → Chosen;   packed(chosen) → PackedModel

What a file has in such groups is taken as it lies; all else is rounded, here and aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from narrows.infer.generate import ServingPrecision
from narrows.infer.loading import no_writer
from narrows.infer.packed import activation, unpackable
from narrows.infer.source import Source, of_original, source
from narrows.kernels.arrays import Floats
from narrows.kernels.decoder import PackedLayer, PackedModel, Turning
from narrows.kernels.interface import Heads
from narrows.kernels.packing import Slab, pack
from narrows.kernels.panels import WHOLE, Packed
from narrows.model.folder import PLAN
from narrows.model.grouped import grouped
from narrows.model.opening import Original, opened
from narrows.model.positions import frequencies
from narrows.model.reading import Reader
from narrows.model.writing import parameters
from narrows.spec.errors import BadInput
from narrows.spec.model import LayerNorm, Learned, ModelSpec, Rotary
from narrows.spec.plan import Plan
from narrows.spec.record import load

Talk = Callable[[str], None]
Keep = Callable[[Packed], Packed]
Bits = Literal[4, 8, 16]
"""What matrices are rounded to; 16 is bf16."""
_BITS: dict[ServingPrecision, Bits] = {"int4": 4, "int8": 8, "bf16": 16}


class Chosen(NamedTuple):
    """What the packed decoder is to compute, and how many bits are for what lies in no groups."""

    given: Source
    bits: Bits

    @property
    def called(self) -> str:
        """What stands behind its path where it is spoken of."""
        given = self.given
        return f": {given.kind}" if given.step is None else f", step {given.step}"


def chosen(
    path: Path, precision: ServingPrecision | None, checkpoint: str | None = None
) -> Chosen | None:
    """The model of a run or a published one, where the packed decoder is to compute it; None where
    torch is. Raises BadInput where it is damaged, or does not write.
    """
    if precision == "fp32":
        return None
    if (path / PLAN).is_file():
        plan = load(Plan, path / PLAN)
        if plan.model.classes or not plan.model.writes:
            raise no_writer(path, plan.model)
        asked = precision or ("bf16" if plan.layout.precision == "bf16" else None)
        if asked is None or (asked == "bf16" and not packs_bf16(plan.model)):
            return None
        return Chosen(source(path, checkpoint), _BITS[asked])
    original = opened(path)
    if precision is None and packs(original):
        precision = "int8"
    if precision in (None, "bf16") and not packs_bf16(original.spec):
        return None
    if not original.spec.writes:
        raise no_writer(path, original.spec)
    return Chosen(of_original(original), _BITS[precision or "bf16"])


def packs(original: Original) -> bool:
    """Whether the file has its matrices in groups that are computed with as they lie."""
    if unpackable(original.spec):
        return False
    shapes = parameters(original.spec)
    reader = Reader(shapes, original.spec, original.naming, original.tensors)
    return reader.grouped("blocks.0.up.weight")


def packs_bf16(spec: ModelSpec) -> bool:
    """Whether the packed decoder computes a model in bf16: here that is quicker than torch in any
    precision.
    """
    return not torch.accelerator.is_available() and not unpackable(spec)


def packed(
    what: Chosen, *, talk: Talk = lambda text: None, keep: Keep = lambda matrix: matrix
) -> PackedModel:
    """The model; matrices that do not lie in groups are rounded, and each is put away by `keep`
    before the next is made. Raises BadInput where the packed decoder does not compute it.
    """
    given, bits = what
    spec = given.spec
    reason = unpackable(spec)
    if reason:
        raise BadInput(f"{given.what} cannot be packed: {reason}", hint="use --precision bf16")
    reading = _Reading(given, bits, keep)
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
    def __init__(self, given: Source, bits: Bits, keep: Keep) -> None:
        self._given, self._shapes = given, parameters(given.spec)
        self._bits, self._width, self._keep = bits, given.spec.width, keep
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
        return self._whole(name).float()

    def _whole(self, name: str) -> Tensor:
        found = self._given.weights.get(name)
        if found is None or tuple(found.shape) != tuple(self._shapes[name]):
            raise BadInput(
                f"{self._given.what} does not hold the weights of the model in plan.toml: {name}",
                hint="was plan.toml changed since? generate from an untouched run folder",
            )
        return found.detach()

    def _bias(self, name: str) -> Tensor | None:
        return self._values(f"{name}.bias") if f"{name}.bias" in self._shapes else None

    def matrix(self, name: str) -> Packed:
        weight, shape = f"{name}.weight", self._shapes[f"{name}.weight"]
        self.read += 1
        pieces: list[tuple[int, Iterator[Slab]]]
        reader = self._given.reader
        if self._bits == 16:
            values = self._narrowed(weight, shape)
            pieces = [(shape[0], iter([(WHOLE, values, None, None, None)]))]
        elif reader and reader.grouped(weight):
            pieces = list(reader.groups(weight, shape))
        else:
            self.rounded += 1
            rounded = grouped(self._values(weight), self._bits)
            pieces = [(shape[0], iter([rounded]))]
        return self._keep(pack(pieces, self._bias(name)))

    def _narrowed(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """In bf16, without a wider copy beside it where a file is read."""
        reader = self._given.reader
        if reader is None:
            return self._whole(name).to(torch.bfloat16)
        values = torch.empty(shape, dtype=torch.bfloat16)
        reader.into(name, values, write=False)
        reader.into(name, values)
        return values
