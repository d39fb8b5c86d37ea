"""One process's part of a model: the parameters that `parallel` leaves to it, group by group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from narrows.plan.fleet.work import Matrix, Work
from narrows.plan.trained import Trained
from narrows.spec.adapter import EVERYTHING, Learning
from narrows.spec.layout import Layout
from narrows.spec.model import Learned, ModelSpec
from narrows.spec.pieces import Piece, even, pieces, rank_of


class Table(NamedTuple):
    """A parameter as this process computes with it. Of those that all tensor ranks have alike,
    `partial` are the ones whose gradients they add up. Of a frozen one in fewer bits a value takes
    `packed` bytes.
    """

    rows: int
    columns: int
    partial: bool = False
    learns: bool = True
    packed: float | None = None

    @property
    def size(self) -> int:
        """Its values."""
        return self.rows * self.columns

    def padded(self, shards: int) -> int:
        """Values that all its shards have, each as large as the first."""
        return -(-self.rows // shards) * shards * self.columns

    def shard(self, shards: int, which: int) -> int:
        """Values of one of its shards."""
        start, stop = even(self.rows, shards, which)
        return (stop - start) * self.columns


Group = tuple[Table, ...]
"""Parameters that are gathered, and whose gradients are reduced, together."""


class Place(NamedTuple):
    """Where a process stands on each axis, tensor ranks being neighbours (parallel/mesh.py)."""

    pipeline: int
    replica: int
    data: int
    context: int
    tensor: int

    @classmethod
    def of(cls, rank: int, layout: Layout) -> Place:
        """Of process `rank`."""
        found = []
        for name in ("tensor", "context", "data", "replicas", "pipeline"):
            rank, here = divmod(rank, getattr(layout, name))
            found.append(here)
        return cls(*reversed(found))


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """The pieces of the model that one process has; `blocks` without their experts, which are
    groups of their own, and `ends`, the tables and norms outside of blocks. `apart` are those that
    never change and are kept whole; through the first `still` blocks no gradient goes back.
    """

    spec: ModelSpec
    layout: Layout
    place: Place
    pieces: tuple[Piece, ...]
    blocks: tuple[Group, ...]
    experts: tuple[Group, ...]
    ends: Group
    apart: Group = ()
    still: int = 0

    @classmethod
    def of(
        cls, spec: ModelSpec, layout: Layout, rank: int = 0, learning: Learning = EVERYTHING
    ) -> Share:
        """Of process `rank` of the layout."""
        place = Place.of(rank, layout)
        own = tuple(
            piece for piece in pieces(spec.layers, layout)
            if rank_of(piece.number, layout) == place.pipeline
        )  # fmt: skip
        if not learning.everything:
            trained = Trained(spec, learning)
            blocks, ends, apart = _tuned(trained, layout)
            still = sum(layer.blocks for layer in trained.layers if not layer.flows)
            return cls(
                spec=spec, layout=layout, place=place, pieces=own, blocks=blocks, experts=(),
                ends=ends, apart=apart, still=still,
            )  # fmt: skip
        making = _Making(spec, layout, place.tensor, Work.of(spec, spec.context))
        layers = [layer for piece in own for layer in range(piece.start, piece.stop)]
        return cls(
            spec=spec, layout=layout, place=place, pieces=own,
            blocks=tuple(tuple(making.block(layer)) for layer in layers),
            experts=tuple(
                tuple(making.experts()) for layer in layers if making.routed(layer)
            ),
            ends=tuple(making.ends(first=own[0].first, last=own[-1].last)),
        )  # fmt: skip

    @property
    def first(self) -> bool:
        """Whether it embeds."""
        return self.pieces[0].first

    @property
    def last(self) -> bool:
        """Whether it takes the loss."""
        return self.pieces[-1].last

    @property
    def shards(self) -> int:
        """Processes that share one copy of what all have."""
        return 1 if self.layout.sharding == "none" else self.layout.data * self.layout.context

    @property
    def copies(self) -> int:
        """Such copies."""
        around = self.layout.batches * self.layout.context
        return around // self.shards

    @property
    def expert_shards(self) -> int:
        """Processes that share one copy of an expert."""
        layout = self.layout
        around = layout.data * layout.context * layout.tensor
        return 1 if layout.sharding == "none" else around // layout.expert

    @property
    def expert_copies(self) -> int:
        """Such copies."""
        layout = self.layout
        around = layout.batches * layout.context * layout.tensor // layout.expert
        return around // self.expert_shards

    @property
    def grouped(self) -> bool:
        """Whether parameters are gathered and gradients reduced at all (parallel/data.py)."""
        experts = self.expert_shards * self.expert_copies if self.experts else 1
        return self.shards * self.copies > 1 or experts > 1

    @property
    def passing(self) -> int:
        """Parameters that are gathered, where any are."""
        groups = (*self.blocks, *self.experts, self.ends)
        return sum(table.size for group in groups for table in group)

    @property
    def whole(self) -> int:
        """Parameters that it computes with and that learn."""
        groups = (*self.blocks, *self.experts, self.ends)
        return sum(table.size for group in groups for table in group if table.learns)

    def frozen_bytes(self, value_bytes: int) -> float:
        """What it keeps of those that do not."""
        shards = self.shards
        groups = (*self.blocks, self.ends)
        pieces = (t for group in groups for t in group if not t.learns)
        sharded = sum(t.padded(shards) / shards * (t.packed or value_bytes) for t in pieces)
        return sharded + sum(table.size * (table.packed or value_bytes) for table in self.apart)

    @property
    def kept(self) -> int:
        """Parameters of which it keeps masters and moments."""
        common = sum(table.padded(self.shards) for group in (*self.blocks, self.ends)
                     for table in group if table.learns) // self.shards  # fmt: skip
        own = sum(table.padded(self.expert_shards) for group in self.experts
                  for table in group) // self.expert_shards  # fmt: skip
        return common + own

    @property
    def partial(self) -> int:
        """Values of this process's gradients that tensor ranks add up."""
        shard = 0
        if self.shards > 1:
            shard = self.place.data * self.layout.context + self.place.context
        tables = (table for group in (*self.blocks, self.ends) for table in group)
        return sum(table.shard(self.shards, shard) for table in tables if table.partial)

    @property
    def copied(self) -> int:
        """Values of the tied table's gradient, where the first stage and the last both have it."""
        if not self.spec.tied_embeddings or self.first == self.last:
            return 0
        shard = self.place.data * self.layout.context + self.place.context
        return self.ends[0].shard(self.shards, shard if self.shards > 1 else 0)


def _tuned(trained: Trained, layout: Layout) -> tuple[tuple[Group, ...], Group, Group]:
    """Tables of each block and outside of blocks, and those that are kept apart: all that is
    frozen, but where parameters are sharded.
    """
    blocks: list[list[Table]] = [[] for _ in range(trained.spec.layers)]
    ends: list[Table] = []
    apart: list[Table] = []
    for each in trained.parameters:
        table = Table(each.rows, each.columns, False, each.learns, each.packed)
        place = each.name.split(".")
        if not each.learns and layout.sharding != "parameters":
            apart.append(table)
        elif place[0] == "blocks":
            blocks[int(place[1])].append(table)
        else:
            ends.append(table)
    return tuple(tuple(block) for block in blocks), tuple(ends), tuple(apart)


class _Making(msgspec.Struct, frozen=True):
    """What a module of the model has, cut for one tensor rank as parallel/tensor.py does."""

    spec: ModelSpec
    layout: Layout
    rank: int
    work: Work

    def routed(self, layer: int) -> bool:
        """Whether the layer's feed-forward is a choice of experts."""
        return self.spec.experts is not None and layer >= self.spec.experts.dense_layers

    def block(self, layer: int) -> Iterator[Table]:
        """A block's parameters but its experts."""
        spec, ranks = self.spec, self.layout.tensor
        matrices = [*self.work.attention]
        matrices += self.work.routed if self.routed(layer) else self.work.dense
        for matrix in matrices:
            # Experts that all tokens meet are whole on each rank, as its piece of the sequence is.
            yield self._matrix(matrix, whole="shared" in matrix.name)
            if self._biased(matrix) and not (matrix.cut == "in" and self.rank):
                cut = ranks if matrix.cut == "out" else 1
                yield Table(int(matrix.out) // cut, 1)
        if self.routed(layer) and spec.experts is not None and spec.experts.router_biases:
            yield self._alike(spec.experts.count)
        for _ in range(spec.norms_per_block):
            yield from self._norm()
        if spec.query_norm is not None:
            for heads in (spec.heads, spec.kv_heads):
                wide = spec.head_width * (heads if spec.query_norm == "whole" else 1)
                yield Table(wide, 1, ranks > 1)
        if spec.latent is not None:
            for width in (spec.latent.kv_rank, spec.latent.query_rank):
                if width is not None:
                    yield Table(width, 1, ranks > 1)
        if spec.sinks:
            yield Table(spec.heads // ranks, 1)

    def experts(self) -> Iterator[Table]:
        """A block's experts, of which this process has its share."""
        experts = self.spec.experts
        assert experts is not None
        here, gates = experts.count // self.layout.expert, 2 if self.spec.gated else 1
        yield Table(here, gates * experts.width * self.spec.width)
        yield Table(here, experts.width * self.spec.width)
        if experts.biases:
            yield Table(here, gates * experts.width)
            yield Table(here, self.spec.width)

    def ends(self, *, first: bool, last: bool) -> Iterator[Table]:
        """What stands before the blocks and behind them; the tied table comes first."""
        spec = self.spec
        start, stop = even(spec.vocabulary, self.layout.tensor, self.rank)
        if first or (last and spec.tied_embeddings):
            yield Table(stop - start, spec.width)
        if first and isinstance(spec.positions, Learned):
            yield Table(spec.context + spec.positions.extra, spec.width)
        if first and spec.token_types:
            yield Table(spec.token_types, spec.width)
        if first and spec.embedding_norm:
            yield from (each._replace(partial=False) for each in self._norm())
        if last and spec.final_norm:
            yield from self._norm()
        if last and spec.head_transform:
            yield Table(spec.width, spec.width)
            yield from (Table(spec.width, 1) for _ in range(3))
        if last and not spec.tied_embeddings:
            yield Table(stop - start, spec.width)
        if last and spec.head_bias:
            yield Table(stop - start, 1)

    def _matrix(self, matrix: Matrix, *, whole: bool) -> Table:
        out, inner = int(matrix.out), int(matrix.inner)
        if matrix.cut == "whole" or whole:
            within = matrix in self.work.attention
            return Table(out, inner, self._summed or (within and self.layout.tensor > 1))
        if matrix.cut == "out":
            return Table(out // self.layout.tensor, inner)
        return Table(out, inner // self.layout.tensor)

    def _biased(self, matrix: Matrix) -> bool:
        if matrix.name == "qkv":
            return self.spec.biases or self.spec.qkv_biases
        return self.spec.biases and matrix.name in ("out", "up", "down")

    def _norm(self) -> Iterator[Table]:
        for _ in range(self.spec.norm_parameters // self.spec.width):
            yield self._alike(self.spec.width)

    def _alike(self, rows: int) -> Table:
        return Table(rows, 1, self._summed)

    @property
    def _summed(self) -> bool:
        """Whether ranks have gradients of their own pieces of the sequence alone."""
        return self.layout.tensor > 1 and self.layout.sequence_parallel
