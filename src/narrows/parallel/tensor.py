"""Tensor parallelism (arXiv:1909.08053): each rank has some heads and some of the feed-forward.

A block's attention and its feed-forward are the two regions in which ranks compute parts. Entering
copies or, with sequence parallelism (arXiv:2205.05198), gathers the sequence; leaving sums the
parts or scatters the sum. Between regions the stream is whole on each rank, or a piece of the
sequence. The vocabulary is cut as well: see `vocabulary`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from narrows.kernels.interface import Heads
from narrows.kernels.past import Kept
from narrows.model.attention import LatentWeights, Place
from narrows.model.block import Block
from narrows.model.transformer import Transformer
from narrows.parallel.collectives import copied, gathered, scattered, sliced, summed
from narrows.parallel.mesh import Axis
from narrows.parallel.parts import Part, Range
from narrows.plan.processes import refuse_whole
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.pieces import even

Parts = dict[str, Part]


class Alike(NamedTuple):
    """Names of parameters that all tensor ranks have, and among them of those whose gradients they
    add up; the others' are the same already.
    """

    every: set[str]
    partial: set[str]


def cut(spec: ModelSpec, parts: Parts, axis: Axis, *, sequence: bool) -> Alike:
    """Cut `parts` in place and drop the names that this rank has nothing of."""
    alike = Alike(set(), set())
    if axis.size == 1:
        return alike
    _refuse(spec, axis)
    if spec.experts is not None and not sequence:
        raise BadInput(
            "tensor ranks would all send the same tokens to the experts",
            hint="layout.sequence_parallel = true",
        )
    for name in list(parts):
        *_, module, kind = ["", *name.split(".")]
        chosen = _rows(spec, name, axis)
        if chosen is not None:
            dim, ranges = chosen
            parts[name] = parts[name].cut(dim, *ranges)
        elif kind == "bias" and _is_row(name):
            # Added once, to the first rank's part.
            if axis.rank:
                del parts[name]
        elif ".experts.each." not in name:
            alike.every.add(name)
            if _within(name, module) or (sequence and not _is_table(name)):
                alike.partial.add(name)
    return alike


def apply(model: Transformer, axis: Axis, *, sequence: bool) -> None:
    """Make `model`, whose parameters are cut already, compute this rank's part."""
    if axis.size == 1:
        return
    for block in model.blocks.children():
        assert isinstance(block, Block)
        _apply_block(block, axis, sequence=sequence)
    if sequence:
        embedded, place = model._embedded, model._place

        def pieces(*given: Any) -> Tensor:
            return sliced(embedded(*given), axis)

        def own_place(*given: Any) -> Place:
            found = place(*given)
            if found.numbers_BT is None:
                return found
            return found._replace(numbers_BT=sliced(found.numbers_BT, axis))

        model._embedded = pieces  # type: ignore[method-assign, assignment]
        model._place = own_place  # type: ignore[method-assign, assignment]


def entered(x_BTD: Tensor, axis: Axis, *, sequence: bool) -> Tensor:
    """The stream, or what was made of it, on its way into a region."""
    return gathered(x_BTD, axis) if sequence else copied(x_BTD, axis)


def _apply_block(block: Block, axis: Axis, *, sequence: bool) -> None:
    N, K, H = block.heads
    block.heads = Heads(N // axis.size, K // axis.size, H)
    if isinstance(block.qkv, LatentWeights):
        block.qkv.heads = block.qkv.heads // axis.size
    attention, feed_forward = block._attention, block._feed_forward
    own = slice(axis.rank * block.heads.query, (axis.rank + 1) * block.heads.query)

    def left(x_BTD: Tensor) -> Tensor:
        return scattered(x_BTD, axis) if sequence else summed(x_BTD, axis)

    def attend(y_BTD: Tensor, place: Place, cache: Kept | None) -> Tensor:
        mask = place.mask_TS
        if mask is not None and mask.ndim == 3:
            place = place._replace(mask_TS=mask[own])
        return left(attention(entered(y_BTD, axis, sequence=sequence), place, cache))

    def feed(y_BTD: Tensor) -> Tensor:
        return left(feed_forward(entered(y_BTD, axis, sequence=sequence)))

    block._attention = attend  # type: ignore[method-assign]
    if block.experts is None:
        block._feed_forward = feed  # type: ignore[method-assign]


def _rows(spec: ModelSpec, name: str, axis: Axis) -> tuple[int, list[Range]] | None:
    """The dimension that a parameter is cut in, and this rank's ranges of it."""
    *_, module, kind = ["", *name.split(".")]
    N, K, H = spec.heads, spec.kv_heads, spec.head_width
    if name in ("tokens.weight", "head.weight", "head_bias"):
        return 0, [even(spec.vocabulary, axis.size, axis.rank)]
    if ".experts." in name:
        return None
    if _is_row(name) and kind == "weight":
        size = N * spec.value_width if module == "out" else spec.feed_forward_width
        return 1, [even(size, axis.size, axis.rank)]
    if module == "qkv":
        ranges, place = [], 0
        for heads in (N, K, K):
            start, stop = even(heads * H, axis.size, axis.rank)
            ranges.append((place + start, place + stop))
            place += heads * H
        return 0, ranges
    if module == "up":
        F = spec.feed_forward_width
        start, stop = even(F, axis.size, axis.rank)
        return 0, [(start, stop), (F + start, F + stop)] if spec.gated else [(start, stop)]
    if module in ("query", "query_up", "key_value_up") and spec.latent is not None:
        widths = {"key_value_up": spec.head_width + spec.latent.value_width}
        return 0, [even(N * widths.get(module, spec.score_width), axis.size, axis.rank)]
    if name.endswith(".sinks"):
        return 0, [even(N, axis.size, axis.rank)]
    return None


def _is_row(name: str) -> bool:
    """Whether a parameter is of a matrix whose parts are summed."""
    return ".experts." not in name and name.split(".")[-2:-1] in (["out"], ["down"])


def _is_table(name: str) -> bool:
    """Whether it is of what is looked up before the stream is in pieces."""
    return name.partition(".")[0] in ("tokens", "positions", "types", "norm_embedding")


def _within(name: str, module: str) -> bool:
    """Whether it is whole, and within a region: each rank has the gradient of its own heads."""
    return ".qkv." in name or ".query_norms." in name or module == "relative"


def _refuse(spec: ModelSpec, axis: Axis) -> None:
    for what, count in (("heads", spec.heads), ("kv_heads", spec.kv_heads),
                        ("columns of the feed-forward", spec.feed_forward_width)):  # fmt: skip
        if count % axis.size:
            raise BadInput(
                f"{count} {what} cannot be divided among {axis.size} tensor ranks",
                hint=f"layout.tensor = a divisor of {count}",
            )
    refuse_whole(spec, "tensor", axis.size)
