from __future__ import annotations

import pytest
import torch
from torch import Tensor

from narrows.adapt.method import TYPES, Type
from narrows.adapt.rounding import BY_NAME, clipped, fitted, grouped, rounded
from narrows.model.blocks import unpack
from narrows.model.grouped import GROUP, of_blocks, to_blocks


def weights(rows: int = 6, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(4))


def even(columns: int = 96) -> Tensor:
    """Inputs that know no direction."""
    return torch.eye(GROUP).expand(columns // GROUP, GROUP, GROUP)


@pytest.mark.parametrize("type", TYPES)
def test_a_grid_is_one_that_a_file_can_have(type: Type) -> None:
    found = clipped(weights(), type, even())
    bytes_n = to_blocks(found, BY_NAME[type])
    block = BY_NAME[type]
    again = of_blocks(memoryview(bytes_n.numpy().data), block, 96)
    for one, other in zip(found, again, strict=True):
        same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
        assert same
    values = torch.empty(6, 96)
    unpack(memoryview(bytes_n.numpy().data), block, values)
    assert torch.equal(found.whole(), values)


@pytest.mark.parametrize("type", TYPES)
def test_what_is_fitted_loses_less_than_the_full_range(type: Type) -> None:
    w_ND = weights(64)
    errors = [(each.whole() - w_ND).square().mean()
              for each in (clipped(w_ND, type, even()), rounded(w_ND, type))]  # fmt: skip
    assert errors[0] <= 1.0001 * errors[1]
    if type != "q8_0":
        assert errors[0] < 0.97 * errors[1]


def test_a_grid_heeds_what_inputs_matter() -> None:
    w_NGC, curvature = grouped(weights(64, 32)), torch.diag(torch.full((32,), 1e-3))
    curvature[9, 9] = 1e3
    grids = [fitted(w_NGC.flatten(1), "q4_0", each) for each in (even(32), curvature[None])]
    plain, heedful = ((grid.values(grid.codes(w_NGC)) - w_NGC)[:, 0, 9] for grid in grids)
    assert heedful.square().sum() < 0.5 * plain.square().sum()


@pytest.mark.parametrize("type", TYPES)
def test_noughts_stay_noughts(type: Type) -> None:
    for found in (clipped(torch.zeros(2, 64), type, even(64)), rounded(torch.zeros(2, 64), type)):
        assert torch.equal(found.whole(), torch.zeros(2, 64))
