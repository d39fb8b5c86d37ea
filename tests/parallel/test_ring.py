from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from narrows.parallel.context import positions
from narrows.parallel.mesh import Axis
from narrows.parallel.ring import (
    Kernel,
    Outcome,
    attention,
    attention_backward,
    block_of,
    merge_,
)

LENGTH, RANKS = 24, 3


def heads(value_width: int, *, seed: int = 5) -> list[Tensor]:
    """Queries of six heads, keys and values of two, whole sequences, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 16), (2, 16), (2, value_width), (6, value_width))
    return [torch.randn(2, n, LENGTH, h, generator=generator) for n, h in shapes]


def plain(q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, *, causal: bool) -> list[Tensor]:
    """Whole attention and the gradients of queries, keys and values."""
    leaves = [each.clone().requires_grad_() for each in (q, k, v)]
    out = scaled_dot_product_attention(*leaves, is_causal=causal, enable_gqa=True)
    out.backward(upstream)
    return [out.detach(), *(each.grad for each in leaves if each.grad is not None)]


def in_parts(q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, *, causal: bool) -> list[Tensor]:
    """The same by every rank's blocks, one after the other in this process."""
    found = [torch.zeros_like(each) for each in (upstream, q, k, v)]
    kernel = Kernel.of(q, v, None)
    for rank in range(RANKS):
        axis = Axis(RANKS, rank)
        places = [positions(LENGTH, axis._replace(rank=n), balanced=causal) for n in range(RANKS)]
        mine, steps = places[rank], range(RANKS)
        blocks = [block_of(step, len(mine), axis, causal=causal) for step in steps]
        held = [places[(rank - step) % RANKS][blocks[step].keys] for step in steps]
        rows = [mine[block.queries] for block in blocks]
        for step in steps:
            part, sums = attention(
                q[:, :, rows[step]], k[:, :, held[step]], v[:, :, held[step]], kernel,
                diagonal=blocks[step].diagonal,
            )  # fmt: skip
            if step == 0:
                whole, total = part.float(), sums
            else:
                merge_(
                    whole[:, :, blocks[step].queries], total[:, :, blocks[step].queries], part, sums
                )  # fmt: skip
        found[0][:, :, mine] = whole.to(q.dtype)
        outcome = Outcome(whole.to(q.dtype), total, upstream[:, :, mine])
        for step in steps:
            gradients = attention_backward(
                q[:, :, rows[step]], k[:, :, held[step]], v[:, :, held[step]],
                outcome.rows(blocks[step].queries), kernel, diagonal=blocks[step].diagonal,
            )  # fmt: skip
            for sum_, place, gradient in zip(
                found[1:], (rows[step], held[step], held[step]), gradients, strict=True
            ):
                sum_[:, :, place] += gradient
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("value_width", [16, 12])
def test_parts_of_attention_merge_into_the_whole(value_width: int, causal: bool) -> None:
    """Values of another width than keys are what the flash kernel does not take."""
    given = heads(value_width)
    assert (Kernel.of(given[0], given[2], None).flash == "cpu") == (value_width == 16)
    for found, expected in zip(
        in_parts(*given, causal=causal), plain(*given, causal=causal), strict=True
    ):
        assert (found - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_every_rank_computes_as_many_scores_at_each_step(size: int) -> None:
    def scores(rank: int, step: int) -> int:
        block = block_of(step, 16, Axis(size, rank), causal=True)
        return len(range(16)[block.queries]) * len(range(16)[block.keys])

    for step in range(1, size):
        assert {scores(rank, step) for rank in range(size)} == {16 * 8}


def test_merging_does_not_overflow_where_one_part_outweighs_the_other() -> None:
    out, sums = torch.ones(1, 1, 1, 4), torch.full((1, 1, 1), -300.0)
    merge_(out, sums, torch.full((1, 1, 1, 4), 2.0), torch.full((1, 1, 1), 300.0))
    assert (out == 2.0).all() and sums == 300.0


def test_half_precision_sums_in_single() -> None:
    given = [each.bfloat16() for each in heads(16)]
    merged = in_parts(*given, causal=True)[0].float()
    expected = plain(*(each.float() for each in given), causal=True)[0]
    assert merged.isfinite().all() and (merged - expected).norm() / expected.norm() < 0.01
