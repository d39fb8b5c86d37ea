"""Which blocks, tables, norm and head a rank of a pipeline has.

A model is cut into pieces along its layers: one a rank, or several, dealt out in turn
(arXiv:2104.04473), or two in a V, where the first rank has both ends (arXiv:2405.15362). The first
piece embeds, the last one takes the loss. Tied embeddings are in both, and the first owns them.
"""

from __future__ import annotations

from torch import Tensor

from narrows.model.transformer import Transformer
from narrows.model.weights import Stream
from narrows.parallel.parts import Part
from narrows.plan.processes import refuse_whole
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec
from narrows.spec.pieces import ENTRY, EXIT, Piece, bent, pieces, rank_of


def own_pieces(spec: ModelSpec, layout: Layout, rank: int) -> list[Piece]:
    """Those of one rank; raises BadInput where no pipeline can run them."""
    if layout.pipeline == 1:
        return [Piece(0, 1, 0, spec.layers)]
    _refuse(spec, layout)
    return [
        piece for piece in pieces(spec.layers, layout) if rank_of(piece.number, layout) == rank
    ]  # fmt: skip


def cut(spec: ModelSpec, parts: dict[str, Part], own: list[Piece]) -> set[str]:
    """Drop in place the names that a rank with the pieces `own` has nothing of; returns those that
    the first rank and the last have alike.
    """
    if own[0].total == 1:
        return set()
    tied = spec.tied_embeddings
    for name in list(parts):
        if not any(piece.has(name, tied=tied) for piece in own):
            del parts[name]
    copied = tied and own[0].first != own[-1].last
    return {"tokens.weight"} if copied else set()


def apply(model: Transformer, own: list[Piece]) -> None:
    """Take out of `model` what its rank has nothing of, and give it `piece`, which computes one."""
    if own[0].total == 1:
        return
    held = {index for piece in own for index in range(piece.start, piece.stop)}
    for index in set(range(len(model.blocks))) - held:
        # Not by ModuleList's own del: what is left keeps its name.
        del model.blocks._modules[str(index)]
    for ends, names in ((own[0].first, ENTRY[1:]), (own[-1].last, EXIT)):
        for name in () if ends else names:
            setattr(model, name, None)

    def compute(given: Tensor, which: int, positions: int) -> Tensor:
        piece = own[which]
        x_BTD = model._embedded(given, 0, None) if piece.first else given
        blocks = [model.blocks.get_submodule(str(n)) for n in range(piece.start, piece.stop)]
        stream = model.through(blocks, Stream(x_BTD, None), (0, positions))
        return model.ended(stream) if piece.last else stream.sum()

    model.piece = compute  # type: ignore[assignment]


def _refuse(spec: ModelSpec, layout: Layout) -> None:
    if bent(layout) and layout.compile:
        raise BadInput(
            "compiled blocks cannot run backward in two passes, as a zero-bubble pipeline does",
            hint="layout.compile = false, or layout.schedule = 1f1b",
        )
    refuse_whole(spec, "pipeline", layout.pipeline)
