"""How matrices are rounded to few bits: as they lie, or by what a text makes of them."""

from __future__ import annotations

from typing import Literal

from narrows.spec.errors import BadInput
from narrows.spec.record import Record

Type = Literal["q8_0", "q4_1", "q4_0"]
TYPES: tuple[Type, ...] = ("q8_0", "q4_1", "q4_0")


class Round(Record, tag="round"):
    """Each value to its nearest, by ggml's own rule."""


class GPTQ(Record, tag="gptq"):
    """What a column's rounding costs is made up for by the columns after it (arXiv:2210.17323).

    `damping` is the share of the mean curvature that is added to all; with `ordered`, columns that
    matter most are rounded first.
    """

    damping: float = 0.01
    ordered: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.damping <= 1.0:
            raise BadInput(f"damping is {self.damping}", hint="a share, such as 0.01")


class AWQ(Record, tag="awq"):
    """Channels that a text drives hard are made larger before they are rounded, and what feeds them
    smaller (arXiv:2306.00978); the exponent is the best of so many `steps` from 0 to 1.
    """

    steps: int = 20


Method = Round | GPTQ | AWQ
