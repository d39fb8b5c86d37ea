"""Many layouts over a fleet at once: one array a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np

from narrows.plan.layouts import Array
from narrows.spec.fleet import Recompute, Sharding, Spread

SHARDINGS: tuple[Sharding, ...] = ("none", "optimizer", "gradients", "parameters")
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
_COUNTS = (
    "data", "replicas", "tensor", "pipeline", "interleave", "context", "expert", "micro_batch",
    "accumulation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Spreads:
    """Candidates that share what `shared` says, which no search varies; arrays [layouts].

    `sharding` and `recompute` are places in SHARDINGS and RECOMPUTES.
    """

    shared: Spread
    data: Array
    replicas: Array
    tensor: Array
    pipeline: Array
    interleave: Array
    context: Array
    expert: Array
    micro_batch: Array
    accumulation: Array
    sharding: Array
    recompute: Array

    @classmethod
    def of(cls, spreads: Sequence[Spread]) -> Spreads:
        """Stack layouts that differ in numbers only."""
        columns = {name: np.array([float(getattr(s, name)) for s in spreads]) for name in _COUNTS}
        return cls(
            shared=spreads[0],
            sharding=np.array([float(SHARDINGS.index(s.sharding)) for s in spreads]),
            recompute=np.array([float(RECOMPUTES.index(s.recompute)) for s in spreads]),
            **columns,
        )

    def spread(self, index: int) -> Spread:
        """The `index`-th candidate as a record."""
        return msgspec.structs.replace(
            self.shared,
            **{name: int(getattr(self, name)[index]) for name in _COUNTS},
            sharding=SHARDINGS[int(self.sharding[index])],
            recompute=RECOMPUTES[int(self.recompute[index])],
        )

    def part(self, which: slice) -> Spreads:
        """A run of the candidates."""
        arrays = {
            field.name: getattr(self, field.name)[which]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return Spreads(shared=self.shared, **arrays)

    @property
    def size(self) -> int:
        """How many they are."""
        return int(self.data.size)

    @property
    def shards(self) -> Array:
        """Ranks that share one copy of what is sharded."""
        return self.data * self.context

    @property
    def expert_shards(self) -> Array:
        """Ranks that share one copy of an expert's weights."""
        return np.maximum(1.0, self.shards * self.tensor / self.expert)

    @property
    def value_bytes(self) -> float:
        """Bytes of a weight or an activation; formats below 16 bits are cast on the way."""
        return 4.0 if self.shared.precision == "fp32" else 2.0
