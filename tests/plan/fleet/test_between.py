from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from narrows.plan.fleet import constants
from narrows.plan.fleet.between import between_ranks
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.model import Experts, ModelSpec

MakeFleet = Callable[..., Fleet]


def _begun(ranks: int) -> float:
    return constants.SERVING_REDUCE + ranks * constants.SERVING_REDUCE_RANK


def test_a_rank_alone_sends_nothing(small: ModelSpec, fleet: Fleet) -> None:
    assert between_ranks(Work.of(small, 64), 1, 1, 512.0, fleet) == (0.0, 0.0)


def test_ranks_that_attend_for_themselves_bring_each_other_the_tokens_and_take_them_back(
    small: ModelSpec, fleet: Fleet
) -> None:
    work, tokens = Work.of(small, 64), 65_536.0
    sent = between_ranks(work, 4, 4, tokens, fleet)
    moved = tokens * small.width * 2
    assert sent.received == pytest.approx(small.layers * 2 * 0.75 * moved)
    rate = float(fleet.domains[0].bandwidth.value) * fleet.reach.links
    around = 0.75 * moved / rate
    assert sent.seconds == pytest.approx(small.layers * 2 * (_begun(4) + around), rel=1e-3)


def test_groups_of_several_ranks_add_up_their_own_attention(small: ModelSpec, fleet: Fleet) -> None:
    work, tokens = Work.of(small, 64), 65_536.0
    alone, paired = (between_ranks(work, 4, groups, tokens, fleet) for groups in (4, 2))
    # Two ranks add up half of the tokens: each receives the other's part of them.
    more = small.layers * tokens / 2 * small.width * 2
    assert paired.received - alone.received == pytest.approx(more)


def test_a_token_goes_to_the_ranks_of_its_experts_alone(
    small: ModelSpec, make_fleet: MakeFleet
) -> None:
    fleet = make_fleet(devices=32, per_node=32)
    sparse = replace(small, experts=Experts(count=64, chosen=2, width=128))
    work, tokens = Work.of(sparse, 64), 65_536.0
    everywhere = between_ranks(Work.of(small, 64), 32, 32, tokens, fleet)
    chosen = between_ranks(work, 32, 32, tokens, fleet)
    met = 32 * (1 - (31 / 32) ** 2)
    moved = tokens / 32 * met * small.width * (2 + 2)
    assert chosen.received == pytest.approx(small.layers * 31 / 32 * moved)
    assert chosen.received < 0.1 * everywhere.received
    narrow = between_ranks(work, 32, 32, tokens, fleet, narrow=True)
    assert narrow.received == pytest.approx(0.75 * chosen.received)


@given(ranks=st.sampled_from([2, 4, 8, 16]), tokens=st.floats(1.0, 1e6))
def test_more_groups_never_send_more_than_all_sums(
    ranks: int, tokens: float, small: ModelSpec, fleet: Fleet
) -> None:
    work = Work.of(small, 64)
    whole = between_ranks(work, ranks, 1, tokens, fleet).seconds
    assert between_ranks(work, ranks, ranks, tokens, fleet).seconds <= whole * (1 + 1e-9)
