"""What of a model learns, on paper: parameters by name, and which gradients a block computes.

Mirrors `adapt` and what autograd makes of it; the hinge tests hold it to the real module.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import msgspec

from narrows.spec.adapter import (
    BLOCK,
    EVERYTHING,
    EXPERTS,
    Learning,
    LowRank,
    inner_width,
    target_rows,
)
from narrows.spec.model import Experts, LayerNorm, Learned, ModelSpec, Relative, Softmax


class Parameter(NamedTuple):
    """One as the module has it. `packed`: bytes of a value where they are not the layout's."""

    name: str
    rows: int
    columns: int
    learns: bool
    packed: float | None = None

    @property
    def size(self) -> int:
        """Its values."""
        return self.rows * self.columns


class Matrix(NamedTuple):
    """What of a product learns: the matrix itself, its bias, and beside it products of low rank,
    their parts together `low` wide. `reads` says whether what it multiplies has a gradient,
    `dropped` whether low ranks have what dropout leaves of it.
    """

    weight: bool
    bias: bool
    low: int
    reads: bool
    dropped: bool = False

    @property
    def flows(self) -> bool:
        """Whether its result has a gradient."""
        return self.weight or self.bias or self.low > 0 or self.reads

    @property
    def keeps(self) -> bool:
        """Whether it needs what it multiplied for the backward pass."""
        return self.weight or (self.low > 0 and not self.dropped)


WHOLE = Matrix(weight=True, bias=True, low=0, reads=True)
"""Where all of a model learns."""


class Layer(NamedTuple):
    """A kind of block, which so many `blocks` are of: its matrices, whether gradients flow through
    its two norms, whether these have weights that learn, and whether a gradient flows on below.
    """

    qkv: Matrix
    out: Matrix
    up: Matrix
    down: Matrix
    first_norm: bool
    second_norm: bool
    norm_weights: bool
    entered: bool
    adapter: LowRank | None
    blocks: int = 1

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """In the order of the data."""
        return self.qkv, self.out, self.up, self.down

    @property
    def flows(self) -> bool:
        """Whether any gradient flows through it."""
        return self.down.flows

    @property
    def adapted(self) -> int:
        """Matrices that have something beside them."""
        return sum(each.low > 0 for each in self.matrices)

    @property
    def lengths(self) -> bool:
        """Whether rows have lengths of their own."""
        return self.adapter is not None and self.adapter.rule == "dora"

    @property
    def activates_again(self) -> bool:
        """Whether native kernels do the activation once more instead of keeping it
        (adapt/apply.py).
        """
        own = self.adapter
        if own is None or not (self.down.low or own.base):
            return False
        return not self.down.low or not (own.rule == "dora" or own.dropout)


class Trained(msgspec.Struct, frozen=True, dict=True):
    """A model, and what of it learns."""

    spec: ModelSpec
    learning: Learning = EVERYTHING

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The blocks in order, those alike in one."""
        if self.learning.everything:
            return (self._layer(0, True)[0]._replace(blocks=self.spec.layers),)
        every, flows = [], self.learns("tokens.weight") or self.learns("positions.weight")
        for layer in range(self.spec.layers):
            one, flows = self._layer(layer, flows)
            every.append(one)
        groups = ((each, len(list(alike))) for each, alike in groupby(every))
        return tuple(each._replace(blocks=count) for each, count in groups)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """All of them, in no order."""
        return tuple(self._parameters())

    @property
    def parameters_trained(self) -> int:
        """Values that learn."""
        return sum(each.size for each in self.parameters if each.learns)

    def weight_bytes(self, value_bytes: int) -> float:
        """Bytes of all parameters."""
        return sum(each.size * (each.packed or value_bytes) for each in self.parameters)

    def learns(self, name: str) -> bool:
        """Whether a parameter does, if there is one of the name."""
        return self.learning.learns(name)

    @property
    def table(self) -> bool:
        """Whether the table of tokens does."""
        return self.learns("tokens.weight")

    @property
    def head(self) -> bool:
        """Whether the matrix that makes logits does."""
        return self.learns("tokens.weight" if self.spec.tied_embeddings else "head.weight")

    @property
    def reaches(self) -> bool:
        """Whether a gradient flows out of the last block."""
        last = self.layers[-1]
        return last.entered or last.out.flows or last.flows

    @property
    def hidden(self) -> bool:
        """Whether last hidden states have one."""
        return self.reaches or self.learns("norm.weight") or self.learns("norm.bias")

    @property
    def told(self) -> bool:
        """Whether what the head reads has one."""
        return self.hidden or (self.spec.head_transform and self.learns("transform.weight"))

    def _layer(self, layer: int, entered: bool) -> tuple[Layer, bool]:
        """A block, of which it is known whether what enters has a gradient; and what leaves."""

        spec, found = self.spec, self.learning.adapter
        adapter = found if isinstance(found, LowRank) else None

        def matrix(name: str, reads: bool) -> Matrix:
            biased = spec.biases or (name == "qkv" and spec.qkv_biases)
            return Matrix(
                weight=self.learns(f"blocks.{layer}.{name}.weight"),
                bias=biased and self.learns(f"blocks.{layer}.{name}.bias"),
                low=low[name], reads=reads,
                dropped=adapter is not None and adapter.dropout > 0.0,
            )  # fmt: skip

        def norm(name: str) -> bool:
            kinds = ("weight", "bias")[: spec.norm_parameters // spec.width]
            return any(self.learns(f"blocks.{layer}.{name}.{kind}") for kind in kinds)

        low = dict.fromkeys(("qkv", "out", "up", "down"), 0)
        if adapter is not None and self.learning.adapts(layer):
            for name, rows in target_rows(spec, layer).items():
                # The matrices of latent attention are one product here, as experts' are.
                place = name.split(".")[0] if name.startswith("qkv") else name.split("_")[-1]
                if not name.startswith(EXPERTS):
                    there = [target for target in adapter.of(name) if target in rows]
                    low[place] += adapter.ranks * len(there)
        first = entered or norm("norm_attention")
        qkv = matrix("qkv", first)
        out = matrix("out", qkv.flows)
        middle = entered or out.flows
        second = middle or norm("norm_feed_forward")
        up = matrix("up", second)
        down = matrix("down", up.flows)
        weights = self.learns(f"blocks.{layer}.norm_attention.weight")
        made = Layer(qkv, out, up, down, first, second, weights, entered, adapter)
        return made, middle or down.flows

    def _parameters(self) -> Iterator[Parameter]:
        spec, D = self.spec, self.spec.width
        yield self._of("tokens.weight", spec.vocabulary, D)
        if isinstance(spec.positions, Learned):
            yield self._of("positions.weight", spec.context + spec.positions.extra, D)
        if isinstance(spec.positions, Relative):
            yield self._of("relative.weight", spec.positions.buckets, spec.heads)
        if spec.token_types:
            yield self._of("types.weight", spec.token_types, D)
        if spec.embedding_norm:
            yield from self._norm("norm_embedding")
        for layer in range(spec.layers):
            yield from self._block(layer)
        if spec.final_norm:
            yield from self._norm("norm")
        if spec.pooler:
            yield self._of("pooler.weight", D, D)
            yield self._of("pooler.bias", D)
        if spec.classes:
            yield self._of("score.weight", spec.classes, D)
            if spec.classes_biased:
                yield self._of("score.bias", spec.classes)
            return
        if spec.head_transform:
            yield self._of("transform.weight", D, D)
            yield self._of("transform.bias", D)
            yield from (self._of(f"norm_transform.{kind}", D) for kind in ("weight", "bias"))
        if not spec.tied_embeddings:
            yield self._of("head.weight", spec.vocabulary, D)
        if spec.head_bias:
            yield self._of("head_bias", spec.vocabulary)

    def _block(self, layer: int) -> Iterator[Parameter]:
        spec, block = self.spec, f"blocks.{layer}"
        norms = {"norm_attention": True, "norm_feed_forward": spec.block_norms != "shared"}
        both = spec.block_norms == "both"
        norms |= {"norm_attention_out": both, "norm_feed_forward_out": both}
        for name, there in norms.items():
            if there:
                yield from self._norm(f"{block}.{name}")
        if spec.query_norm is not None:
            for name, heads in (("query", spec.heads), ("key", spec.kv_heads)):
                wide = spec.head_width * (heads if spec.query_norm == "whole" else 1)
                yield self._of(f"{block}.query_norms.{name}.weight", wide)
        if spec.sinks:
            yield self._of(f"{block}.sinks", spec.heads)
        for matrix, rows in target_rows(spec, layer).items():
            total = list(rows.values())[-1][1]
            yield from self._matrix(layer, matrix, total)
            if (spec.biases or (matrix == "qkv" and spec.qkv_biases)) and "experts" not in matrix:
                yield self._of(f"{block}.{matrix}.bias", total)
        if spec.latent is not None:
            yield self._of(f"{block}.qkv.key_value_norm.weight", spec.latent.kv_rank)
            if spec.latent.query_rank is not None:
                yield self._of(f"{block}.qkv.query_norm.weight", spec.latent.query_rank)
        if spec.experts is not None and layer >= spec.experts.dense_layers:
            yield from self._experts(spec.experts, f"{block}.experts")

    def _experts(self, experts: Experts, name: str) -> Iterator[Parameter]:
        """What of them is no matrix of a product for all rows."""
        yield self._of(f"{name}.router.weight", experts.count, self.spec.width)
        if experts.router_biases:
            # Where experts are balanced by it, no gradient reaches it.
            bias = self._of(f"{name}.router.bias", experts.count)
            yield bias._replace(learns=bias.learns and isinstance(experts.gate, Softmax))
        if experts.biases:
            up = experts.width * (2 if self.spec.gated else 1)
            yield self._of(f"{name}.each.up.bias", experts.count, up)
            yield self._of(f"{name}.each.down.bias", experts.count, self.spec.width)

    def _matrix(self, layer: int, matrix: str, rows: int) -> Iterator[Parameter]:
        name, columns = f"blocks.{layer}.{matrix}", inner_width(self.spec, matrix)
        adapter, experts = self.learning.adapter, self.spec.experts
        copies = experts.count if experts and matrix.startswith(EXPERTS) else 1
        if not isinstance(adapter, LowRank) or adapter.base is None:
            yield self._of(f"{name}.weight", copies * rows, columns)
        elif adapter.base == "int8":
            yield Parameter(f"{name}.codes", rows, columns, False, 1.0)
            yield Parameter(f"{name}.scales", rows, 1, False, 4.0)
        else:
            yield Parameter(f"{name}.codes", rows, -(-columns // 2), False, 1.0)
            yield Parameter(f"{name}.scales", rows, -(-columns // BLOCK), False, 2.0)
        if not isinstance(adapter, LowRank) or not self.learning.adapts(layer):
            return
        known = target_rows(self.spec, layer)[matrix]
        parts = [known[target] for target in adapter.of(matrix) if target in known]
        if not parts:
            return
        wide = sum(stop - start for start, stop in parts)
        yield Parameter(f"{name}.a.weight", copies * len(parts) * adapter.ranks, columns, True)
        yield Parameter(f"{name}.b", copies * wide, adapter.ranks, True)
        if adapter.rule == "dora":
            yield Parameter(f"{name}.length.weight", wide, 1, True)

    def _norm(self, name: str) -> Iterator[Parameter]:
        width, norm = self.spec.width, self.spec.norm
        if isinstance(norm, LayerNorm) and not norm.scale:
            return
        for kind in ("weight", "bias")[: self.spec.norm_parameters // width]:
            yield self._of(f"{name}.{kind}", width)

    def _of(self, name: str, rows: int, columns: int = 1) -> Parameter:
        return Parameter(name, rows, columns, self.learns(name))
