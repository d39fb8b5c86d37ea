from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from narrows.data.bins import packed

ROOM = 64
LENGTHS = st.lists(st.integers(1, ROOM), max_size=60)


@given(LENGTHS)
def test_every_item_is_once_in_a_row_that_has_room(lengths: list[int]) -> None:
    rows = packed(lengths, ROOM)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[item] for item in row) <= ROOM for row in rows)


@given(LENGTHS)
def test_no_two_rows_would_fit_into_one(lengths: list[int]) -> None:
    sizes = sorted(sum(lengths[item] for item in row) for row in packed(lengths, ROOM))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > ROOM


@given(st.lists(st.lists(st.integers(1, ROOM // 2), min_size=1, max_size=5), max_size=12),
       st.randoms(use_true_random=False))  # fmt: skip
def test_rows_are_few(cut: list[list[int]], mixed: random.Random) -> None:
    """Items cut out of full rows could be packed into as many: at most 11/9 of these and 6/9 more
    are taken (Dósa 2007, of first fit; best fit of the longest first has the same bound).
    """
    lengths = []
    for parts in cut:
        scale = ROOM / sum(parts)
        whole = [max(1, int(part * scale)) for part in parts]
        whole[-1] += ROOM - sum(whole)
        lengths += whole if whole[-1] > 0 else [ROOM]
    mixed.shuffle(lengths)
    assert sum(lengths) == ROOM * len(cut)
    assert len(packed(lengths, ROOM)) <= 11 / 9 * len(cut) + 1


def test_equal_items_keep_their_order() -> None:
    assert packed([3, 3, 3, 3, 4], 7) == [[4, 0], [1, 2], [3]]
    assert packed([], 7) == []
