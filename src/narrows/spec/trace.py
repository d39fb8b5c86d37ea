"""What one rank does in a step, planned and traced, and why the two differ."""

from __future__ import annotations

from typing import Literal

from narrows.spec.fleet import Spread
from narrows.spec.ledger import MemoryPeak
from narrows.spec.record import Record

Collective = Literal["gather", "scatter", "sum", "exchange", "send"]
AxisName = Literal["tensor", "context", "pipeline", "expert", "data", "replicas"]
TOLERANCE = 0.01
"""Of what is traced, what may remain unexplained."""


class Traffic(Record):
    """Collectives of one kind along one axis. `bytes` are those that the rank sends, by a ring
    among n: (n-1)/n of the whole for a gather, a scatter and an exchange, twice that for a sum.
    """

    axis: AxisName
    kind: Collective
    count: float
    bytes: float


class Trace(Record):
    """One rank's step: FLOP of products with weights and of scores, causal ones by the keys that
    are seen; collectives; memory at its fullest, whose `workspace` are parameters gathered whole
    and whose `activations` are all else that comes and goes, `makers` the operations that made it;
    and the `most` that there is of each kind at any time.
    """

    rank: int
    products: float
    scores: float
    traffic: tuple[Traffic, ...]
    memory: MemoryPeak
    makers: dict[str, float]
    most: dict[str, float]
    seconds: float


class Reason(Record):
    """Something that the plan leaves out or the run does otherwise: by how much, and in how many
    collectives.
    """

    name: str
    amount: float
    count: float = 0.0


class Compared(Record):
    """One quantity on paper and traced; counts are of collectives, a sum being a scatter and a
    gather.
    """

    quantity: str
    unit: Literal["FLOP", "B"]
    planned: float
    traced: float
    planned_count: float = 0.0
    traced_count: float = 0.0
    reasons: tuple[Reason, ...] = ()

    @property
    def rest(self) -> float:
        """What no reason explains."""
        return self.traced - self.planned - sum(reason.amount for reason in self.reasons)

    @property
    def rest_count(self) -> float:
        """Collectives that no reason explains."""
        return self.traced_count - self.planned_count - sum(each.count for each in self.reasons)

    @property
    def settled(self) -> bool:
        """Whether the difference is explained to within the tolerance."""
        return abs(self.rest) <= TOLERANCE * max(abs(self.planned), abs(self.traced))


class Comparison(Record):
    """A planned layout and the trace of one of its ranks, quantity by quantity."""

    model_name: str
    spread: Spread
    trace: Trace
    rows: tuple[Compared, ...]

    @property
    def stage(self) -> int:
        """Of the pipeline's stages, that of the rank."""
        return self.trace.rank * self.spread.pipeline // self.spread.devices


class Comparisons(Record):
    """Of one layout: a rank of each kind of stage, the first, one in the middle and the last."""

    ranks: tuple[Comparison, ...]
