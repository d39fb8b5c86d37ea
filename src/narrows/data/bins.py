"""Documents packed into rows of one length: whole ones, side by side, as few rows as will do."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which items share a row of `room`, by their numbers: best fit of the longest first (Johnson
    1973, at most 11/9 of the fewest rows and one more). None may be longer than the room.
    """
    rows: list[list[int]] = []
    # Rows with room left, by how much; those of one size wait in a stack of their own.
    sizes: list[int] = []
    waiting: dict[int, list[int]] = {}
    for item in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        length = lengths[item]
        assert 0 < length <= room
        place = bisect_left(sizes, length)
        if place == len(sizes):
            number, left = len(rows), room
            rows.append([])
        else:
            left = sizes[place]
            number = waiting[left].pop()
            if not waiting[left]:
                del waiting[left]
                sizes.pop(place)
        rows[number].append(item)
        if left - length:
            if left - length not in waiting:
                waiting[left - length] = []
                insort(sizes, left - length)
            waiting[left - length].append(number)
    return rows
