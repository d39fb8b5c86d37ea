"""The product as one function against the same written out, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from narrows.adapt import low_rank
from narrows.adapt.low_rank import Frozen, Low
from narrows.adapt.packed import pack
from narrows.kernels.load import available, load
from narrows.spec.adapter import Base

E, D, R = 12, 70, 3
ROWS = {"all": ((0, E),), "parts": ((0, 5), (5, 8), (8, E)), "some": ((2, 5), (9, 11))}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(x_MD: Tensor, weight_ED: Tensor, bias_E: Tensor, low: Low) -> Tensor:
    """Each part by itself, as PEFT has it."""
    out_ME, at = x_MD @ weight_ED.t() + bias_E, 0
    pieces = list(low.a_PD.split(R))
    for (start, stop), a_RD in zip(low.rows, pieces, strict=True):
        b_XR = low.b_XR[at : at + stop - start]
        at += stop - start
        padding = (start, low.total - stop)
        own_ME = low.scale * (x_MD @ a_RD.t()) @ b_XR.t()
        out_ME = out_ME + torch.nn.functional.pad(own_ME, padding)
    return out_ME


@pytest.mark.parametrize("rows", ROWS)
def test_product_and_gradients_are_those_of_each_part(rows: str) -> None:
    chosen = ROWS[rows]
    x_BTD = draw(2, 7, D, seed=0).requires_grad_()
    count = sum(stop - start for start, stop in chosen)
    a, b = draw(len(chosen) * R, D, seed=1), draw(count, R, seed=2)
    low = Low(a.requires_grad_(), b.requires_grad_(), chosen, E, 0.7)
    weight_ED, bias_E = draw(E, D, seed=3), draw(E, seed=4)
    found = low_rank.linear(x_BTD, Frozen(weight_ED, None, D), bias_E, low)
    expected = written_out(x_BTD.flatten(0, 1), weight_ED, bias_E, low).view_as(found)
    torch.testing.assert_close(found, expected)
    upstream = draw(2, 7, E, seed=5)
    learns = (x_BTD, low.a_PD, low.b_XR)
    ours = torch.autograd.grad(found, learns, upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, learns, upstream))


def test_what_is_read_may_be_dropped() -> None:
    x, other = (draw(2, 7, D, seed=seed).requires_grad_() for seed in (0, 6))
    low = Low(draw(R, D, seed=1), draw(E, R, seed=2), ROWS["all"], E, 0.7)
    weight_ED = draw(E, D, seed=3)
    found = low_rank.linear(x, Frozen(weight_ED, None, D), None, low, other)
    expected = x @ weight_ED.t() + 0.7 * (other @ low.a_PD.t()) @ low.b_XR.t()
    upstream = draw(2, 7, E, seed=5)
    ours = torch.autograd.grad(found, (x, other), upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (x, other), upstream))


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_packed_matrices_multiply_as_what_they_stand_for_and_are_not_kept_whole(base: Base) -> None:
    x_BTD = draw(2, 7, D, seed=0).float().requires_grad_()
    codes, scales = pack(draw(E, D, seed=3), base)
    frozen = Frozen(codes, scales, D)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = low_rank.linear(x_BTD, frozen, None)
    assert {each.data_ptr() for each in kept} == {codes.data_ptr(), scales.data_ptr()}
    expected = x_BTD @ frozen.whole(torch.float32).t()
    torch.testing.assert_close(found, expected)
    upstream = draw(2, 7, E, seed=5).float()
    ours, theirs = (torch.autograd.grad(each, x_BTD, upstream) for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("kernels", available())
def test_an_activation_that_is_computed_again_gives_the_gradients_of_one_that_is_kept(
    kernels: str, activation: str
) -> None:
    own, wide = load(kernels), D * (2 if activation == "swiglu" else 1)  # type: ignore[arg-type]
    h_BTX = draw(2, 7, wide, seed=0).bfloat16().requires_grad_()
    low = Low(draw(R, D, seed=1).bfloat16(), draw(E, R, seed=2).bfloat16(), ROWS["all"], E, 0.7)
    learns = (h_BTX, low.a_PD.requires_grad_(), low.b_XR.requires_grad_())
    frozen = Frozen(draw(E, D, seed=3).bfloat16(), None, D)
    how = (own, activation)
    again = low_rank.activated_linear(h_BTX, frozen, None, low, how)  # type: ignore[arg-type]
    y_BTD = own.activation(h_BTX, activation)  # type: ignore[arg-type]
    kept = low_rank.linear(y_BTD, frozen, None, low)
    torch.testing.assert_close(again, kept, rtol=0, atol=0)
    upstream = draw(2, 7, E, seed=5).bfloat16()
    ours = torch.autograd.grad(again, learns, upstream)
    torch.testing.assert_close(ours, torch.autograd.grad(kept, learns, upstream), rtol=0, atol=0)


@pytest.mark.parametrize("rows", ROWS)
def test_rows_that_a_product_makes_longer_are_shortened_to_what_they_were(rows: str) -> None:
    chosen = ROWS[rows]
    count = sum(stop - start for start, stop in chosen)
    a_PD, b_XR = draw(len(chosen) * R, D, seed=1).float(), draw(count, R, seed=2).float()
    low = Low(a_PD, b_XR, chosen, E, 0.7)
    weight_ED = draw(E, D, seed=3).float()
    summed_ED = weight_ED + low.spread() @ low.a_PD
    expected = weight_ED.norm(dim=1) / summed_ED.norm(dim=1)
    found = low_rank.row_growth(Frozen(weight_ED, None, D), low)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
