from __future__ import annotations

import pytest

from narrows.hardware.fleet import fleet
from narrows.hardware.regions import carbon, placed, regions
from narrows.spec.errors import BadInput


@pytest.mark.parametrize(
    ("name", "grams"),
    [
        # Our World in Data, carbon intensity of electricity generation, 2023 (Ember).
        ("france", 56), ("germany", 381), ("india", 713), ("china", 582), ("Canada", 170),
        # 429.983, 635.267 and 770.884 lb/MWh (EPA, eGRID2023 rev. 2, table 1), 453.592 g a pound.
        ("us-california", 195), ("US West", 288), ("usa", 350), ("us_west", 288),
    ],
)  # fmt: skip
def test_a_region_is_known_by_its_names(name: str, grams: float) -> None:
    found = carbon(name)
    assert float(found.value) == grams
    assert found.basis == "estimated" and "2023" in found.source


def test_every_region_has_a_source_and_a_credible_figure() -> None:
    known = regions()
    names = [name for key, each in known.regions.items() for name in (key, *each.aliases)]
    assert len(known.regions) >= 25 and len(names) == len(set(names))
    for region in known.regions.values():
        assert "2023" in known.sources[region.source]
        assert 20 < float(region.carbon) < 1000


@pytest.mark.parametrize(
    ("name", "hint"),
    [("frence", "france"), ("us-wst", "us-west"), ("germny", "germany"), ("xyz", "use one of")],
)
def test_an_unknown_region_suggests_the_near_ones(name: str, hint: str) -> None:
    with pytest.raises(BadInput, match="no region") as caught:
        carbon(name)
    assert hint in str(caught.value.hint)


def test_a_fleet_is_placed_and_stays_itself_otherwise() -> None:
    known = fleet("8xh100-sxm")
    assert placed(known, None, None) == known
    there = placed(known, "sweden", 1.1)
    assert (float(there.carbon.value), there.overhead.value) == (41.0, 1.1)
    assert there.peak == known.peak and there.overhead.source == "as given"


@pytest.mark.parametrize("overhead", [0.9, -1.0, 100.0, float("nan")])
def test_a_building_cannot_draw_less_than_its_machines(overhead: float) -> None:
    with pytest.raises(BadInput, match="cannot be"):
        placed(fleet("h100-sxm"), None, overhead)
