from __future__ import annotations

import pytest

from narrows.spec.timeline import Lane, Timeline, both, joined, length, without


def test_spans_are_joined_where_they_meet_or_nearly_do() -> None:
    assert joined([(3.0, 4.0), (0.0, 1.0), (0.5, 2.0)]) == ((0.0, 2.0), (3.0, 4.0))
    assert joined([(0.0, 1.0), (1.4, 2.0)], gap=0.5) == ((0.0, 2.0),)
    assert joined([(1.0, 1.0)]) == ()


def test_what_both_have_and_what_one_has_alone_make_the_one() -> None:
    link, compute = [(0.0, 4.0), (5.0, 6.0)], [(1.0, 2.0), (3.0, 5.5)]
    assert both(link, compute) == ((1.0, 2.0), (3.0, 4.0), (5.0, 5.5))
    assert without(link, compute) == ((0.0, 1.0), (2.0, 3.0), (5.5, 6.0))
    assert length(both(link, compute)) + length(without(link, compute)) == length(link)


def test_a_step_s_exchange_is_the_mean_of_all_ranks() -> None:
    lanes = tuple(
        Lane(
            rank=rank, compute=(), link=(), data=(), waiting=(), exchanging_s=seconds, hidden_s=1.0
        )
        for rank, seconds in enumerate((4.0, 8.0))
    )
    found = Timeline(first_step=3, begins=(0.0, 5.0), seconds=10.0, clock_error_s=0.0, lanes=lanes)
    assert (found.exchanging_s, found.hidden_s) == pytest.approx((3.0, 0.5))
