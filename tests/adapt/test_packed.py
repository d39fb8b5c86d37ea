from __future__ import annotations

import pytest
import torch

from narrows.adapt.packed import nf4_quantiles, pack, packed_shapes, packed_types, unpack
from narrows.spec.adapter import Base

PUBLISHED = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
"""arXiv:2305.14314, appendix E."""


def test_levels_are_those_that_were_published() -> None:
    assert nf4_quantiles() == pytest.approx(PUBLISHED, abs=1e-6)


@pytest.mark.parametrize("columns", [64, 70, 129, 200, 7])
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_what_is_packed_comes_back_as_near_as_its_levels_are(base: Base, columns: int) -> None:
    weight_ED = torch.randn(9, columns, generator=torch.Generator().manual_seed(0))
    codes, scales = pack(weight_ED, base)
    assert (tuple(codes.shape), tuple(scales.shape)) == packed_shapes((9, columns), base)
    assert (codes.dtype, scales.dtype) == packed_types(base)
    found = unpack(codes, scales, columns, torch.float32)
    # Half of the widest gap between levels, of the largest value of the row.
    gap = 0.5 / 127 if base == "int8" else (PUBLISHED[-1] - PUBLISHED[-2]) / 2
    gap = max(gap, (PUBLISHED[1] - PUBLISHED[0]) / 2) if base == "nf4" else gap
    most = gap * weight_ED.abs().amax(dim=1, keepdim=True) * 1.01
    assert ((found - weight_ED).abs() <= most).all()


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_levels_themselves_are_kept(base: Base) -> None:
    codes, scales = pack(torch.randn(5, 128), base)
    whole = unpack(codes, scales, 128, torch.float32)
    again = unpack(*pack(whole, base), 128, torch.float32)
    torch.testing.assert_close(again, whole, rtol=0.005, atol=0)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_rows_of_nothing_stay_nothing(base: Base) -> None:
    assert not unpack(*pack(torch.zeros(3, 64), base), 64, torch.bfloat16).any()


def test_normal_weights_are_a_tenth_off_in_four_bits() -> None:
    weight_ED = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    found = unpack(*pack(weight_ED, "nf4"), 512, torch.float32)
    assert float((found - weight_ED).norm() / weight_ED.norm()) == pytest.approx(0.095, abs=0.01)
