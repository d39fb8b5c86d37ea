from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.plan.fleet import constants
from narrows.plan.fleet.links import Links
from narrows.spec.fleet import Fleet

MakeFleet = Callable[..., Fleet]
# Four devices to a node at 100 bytes a second, nodes at 10 bytes a second for each of them.
LINKS = Links(domain=4.0, inside=100.0, outside=10.0, latency_inside=0.25, latency_outside=3.0)
RANKS = st.sampled_from((1, 2, 4, 8, 16, 64))
BYTES = st.floats(min_value=1.0, max_value=1e12)
COLLECTIVES = {
    "gather": LINKS.gather,
    "exchange": LINKS.exchange,
    "send": lambda moved, ranks, stride: LINKS.send(moved, stride),
}
collective = pytest.mark.parametrize("name", COLLECTIVES)


def took(name: str, moved: float, ranks: float, stride: float) -> float:
    arrays = (np.array([each]) for each in (moved, ranks, stride))
    return float(COLLECTIVES[name](*arrays)[0])


@pytest.mark.parametrize(
    ("ranks", "stride", "seconds"),
    [
        (2, 1, 1 * 800 / (2 * 100) + 0.25),
        # The distance doubles: two waits for four ranks.
        (4, 1, 3 * 800 / (4 * 100) + 2 * 0.25),
        # Two nodes: a ring leaves each by all four ports; the last of three waits goes outside.
        (8, 1, 7 * 800 / (8 * 40) + 3 * 0.25 + 3.0),
        # Every second device is a member: two ports a node.
        (4, 2, 3 * 800 / (4 * 20) + 2 * 0.25 + 3.0),
        # One member a node, or one in several nodes: its own port alone.
        (4, 4, 3 * 800 / (4 * 10) + 2 * (3.0 + 0.25)),
        (4, 16, 3 * 800 / (4 * 10) + 2 * (3.0 + 0.25)),
    ],
)
def test_a_gather_by_hand(ranks: int, stride: int, seconds: float) -> None:
    assert took("gather", 800.0, ranks, stride) == pytest.approx(seconds)


def test_a_node_is_never_left_faster_than_a_device_can_pass_it_on() -> None:
    wide = Links(domain=64.0, inside=100.0, outside=10.0, latency_inside=0.0, latency_outside=0.0)
    ranks, stride = np.array([128.0]), np.array([1.0])
    assert wide.gather(np.array([128.0]), ranks, stride) == pytest.approx(127 / 100)


def test_an_exchange_by_hand() -> None:
    # Of four ranks in a node each keeps a quarter; the others' three go over the bus.
    assert took("exchange", 400.0, 4, 1) - took("exchange", 0.0, 4, 1) == pytest.approx(3.0)
    # Of sixteen, twelve parts leave the node by the rank's own port.
    far = took("exchange", 1600.0, 16, 1) - took("exchange", 0.0, 16, 1)
    assert far == pytest.approx(1200 / 10)


def test_a_hop_takes_the_way_that_lies_between() -> None:
    assert took("send", 100.0, 1, 2) == pytest.approx(1.0)
    assert took("send", 100.0, 1, 4) == pytest.approx(10.0 + 3.0)


@pytest.mark.parametrize("name", ["gather", "exchange"])
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_one_rank_alone_costs_nothing(name: str, stride: int) -> None:
    assert took(name, 1e9, 1, stride) == 0.0


@collective
@settings(deadline=None)
@given(moved=BYTES, more=st.floats(min_value=1.0, max_value=100.0), ranks=RANKS, stride=RANKS)
def test_more_bytes_never_take_less(
    name: str, moved: float, more: float, ranks: int, stride: int
) -> None:
    assert took(name, moved * more, ranks, stride) >= took(name, moved, ranks, stride) >= 0.0


@pytest.mark.parametrize("name", ["gather", "exchange"])
@settings(deadline=None)
@given(moved=BYTES, ranks=RANKS, stride=RANKS)
def test_twice_the_ranks_never_take_less(name: str, moved: float, ranks: int, stride: int) -> None:
    less, more = took(name, moved, ranks, stride), took(name, moved, 2 * ranks, stride)
    assert more >= less or more == pytest.approx(less)


@collective
@settings(deadline=None)
@given(moved=BYTES, ranks=RANKS)
def test_ranks_that_lie_further_apart_never_take_less(name: str, moved: float, ranks: int) -> None:
    by_stride = [took(name, moved, ranks, stride) for stride in (1, 2, 4, 8)]
    assert all(b >= a or b == pytest.approx(a) for a, b in pairwise(by_stride))


def test_a_fleet_keeps_up_a_share_of_its_data_sheet(make_fleet: MakeFleet) -> None:
    links = Links.of(make_fleet())
    assert (links.domain, links.latency_inside, links.latency_outside) == (4.0, 1e-6, 5e-6)
    assert links.inside == pytest.approx(constants.LINK * 100e9)
    assert links.outside == pytest.approx(constants.NETWORK * 10e9)


def test_one_domain_is_both_inside_and_outside(make_fleet: MakeFleet) -> None:
    links = Links.of(make_fleet(devices=4))
    assert links.inside == links.outside == pytest.approx(constants.LINK * 100e9)


def test_devices_alone_in_their_nodes_meet_by_the_network(make_fleet: MakeFleet) -> None:
    links = Links.of(make_fleet(per_node=1))
    moved, ranks, stride = (np.array([each]) for each in (16e9, 16.0, 1.0))
    wait = 4 * (5e-6 + 1e-6)
    assert float(links.gather(moved, ranks, stride)[0]) == pytest.approx(
        15e9 / (constants.NETWORK * 10e9) + wait
    )
