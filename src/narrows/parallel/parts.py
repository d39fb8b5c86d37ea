"""Which part of a whole parameter a rank has.

Every cut that a layout makes is a choice of ranges in one of the parameter's dimensions: heads of a
fused projection are three ranges of its rows. First values, checkpoints and equality tests know
ranks by their parts alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Range = tuple[int, int]


class Box(NamedTuple):
    """A contiguous piece: where it begins in the whole and in the part, and how large it is."""

    whole: tuple[int, ...]
    part: tuple[int, ...]
    size: tuple[int, ...]


class Part(NamedTuple):
    """Ranges of every dimension of a tensor of `shape`, one after the other in the part."""

    shape: tuple[int, ...]
    ranges: tuple[tuple[Range, ...], ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Part:
        """All of it."""
        return Part(tuple(shape), tuple(((0, size),) for size in shape))

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The part's own shape."""
        return tuple(sum(stop - start for start, stop in each) for each in self.ranges)

    def cut(self, dim: int, *chosen: Range) -> Part:
        """Of this part, what lies in the `chosen` ranges of dimension `dim`."""
        kept: list[Range] = []
        for first, last in chosen:
            place = 0
            for start, stop in self.ranges[dim]:
                low, high = max(first, place), min(last, place + stop - start)
                if low < high:
                    kept.append((start + low - place, start + high - place))
                place += stop - start
        ranges = (*self.ranges[:dim], tuple(kept), *self.ranges[dim + 1 :])
        return Part(self.shape, ranges)

    def of(self, whole: Tensor) -> Tensor:
        """This part of the whole tensor."""
        for dim, ranges in enumerate(self.ranges):
            if ranges == ((0, self.shape[dim]),):
                continue
            pieces = [whole.narrow(dim, start, stop - start) for start, stop in ranges]
            whole = torch.cat(pieces, dim) if pieces else whole.narrow(dim, 0, 0)
        return whole

    def boxes(self) -> Iterator[Box]:
        """Its contiguous pieces."""

        def along(dim: int) -> Iterator[Box]:
            if dim == len(self.shape):
                yield Box((), (), ())
                return
            place = 0
            for start, stop in self.ranges[dim]:
                for rest in along(dim + 1):
                    yield Box(
                        (start, *rest.whole), (place, *rest.part), (stop - start, *rest.size)
                    )  # fmt: skip
                place += stop - start

        return along(0)
