from __future__ import annotations

import pytest

from narrows.infer.lookup import Lookup

SAID = [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    lookup = Lookup([*SAID, 9, 2, 3, 4], 8)
    assert lookup.guess() == (5,)
    lookup.add(5)
    lookup.found(1)
    assert lookup.guess() == (6, 7)
    lookup.found(2)
    assert lookup.guess() == (6, 7, 8, 9)


def test_two_tokens_tell_where_three_were_never_said() -> None:
    assert Lookup([*SAID, 9, 4, 5], 8).guess() == (6,)
    assert Lookup([*SAID, 9, 8, 5], 8).guess() == ()
    assert Lookup([], 8).guess() == Lookup([1], 8).guess() == ()


def test_the_last_time_counts() -> None:
    assert Lookup([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 8).guess() == (5,)


@pytest.mark.parametrize(("most", "right", "count"), [(8, 0, 1), (8, 4, 8), (6, 4, 6), (8, 2, 2)])
def test_it_dares_as_much_as_was_right(most: int, right: int, count: int) -> None:
    lookup = Lookup([*SAID, *SAID, 1, 2, 3], most)
    for found in (1, 2):
        lookup.guess()
        lookup.found(found)
    assert len(lookup.guess()) == 4
    lookup.found(right)
    assert len(lookup.guess()) == count
