"""Many layouts over a fleet at once: one array a choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from narrows.plan.layouts import Array
from narrows.spec.fleet import SIZES, Exchange, Placement, Recompute, Schedule, Sharding, Spread

SHARDINGS: tuple[Sharding, ...] = ("none", "optimizer", "gradients", "parameters")
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full", "pointwise")
SCHEDULES: tuple[Schedule, ...] = ("1f1b", "gpipe", "zero_bubble")
PLACEMENTS: tuple[Placement, ...] = ("pipeline_outermost", "data_outermost")
EXCHANGES: tuple[Exchange, ...] = ("ring", "all_to_all")
CHOICES: dict[str, tuple[object, ...]] = {
    "sharding": SHARDINGS, "recompute": RECOMPUTES, "schedule": SCHEDULES,
    "placement": PLACEMENTS, "exchange": EXCHANGES, "reshard": (False, True),
}  # fmt: skip
COUNTS = (*SIZES, "micro_batch", "accumulation", "first_fewer", "last_fewer")
ARRAYS = (*COUNTS, *CHOICES)
# Their arrays stay in the second-level cache.
_CHUNK = 8192


class Spreads(msgspec.Struct, frozen=True, kw_only=True):
    """Candidates that share what `shared` says, which no search varies; arrays [layouts].

    What has a name is its place in CHOICES.
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
    first_fewer: Array
    last_fewer: Array
    sharding: Array
    reshard: Array
    recompute: Array
    schedule: Array
    placement: Array
    exchange: Array

    @classmethod
    def of(cls, spreads: Sequence[Spread]) -> Spreads:
        """Stack layouts that differ in numbers only."""
        columns = {name: np.array([float(getattr(s, name)) for s in spreads]) for name in COUNTS}
        for name, known in CHOICES.items():
            columns[name] = np.array([float(known.index(getattr(s, name))) for s in spreads])
        return cls(shared=spreads[0], **columns)

    def spread(self, index: int) -> Spread:
        """The `index`-th candidate as a record."""
        counts = {name: int(getattr(self, name)[index]) for name in COUNTS}
        named = {
            name: known[int(getattr(self, name)[index])] for name, known in CHOICES.items()
        }  # fmt: skip
        return msgspec.structs.replace(self.shared, **counts, **named)

    def part(self, which: slice | npt.NDArray[np.intp]) -> Spreads:
        """Some of the candidates."""
        return self.changed(**{name: getattr(self, name)[which] for name in ARRAYS})

    def changed(self, **arrays: Array) -> Spreads:
        """The same with other arrays."""
        known = {name: getattr(self, name) for name in ARRAYS}
        return Spreads(shared=self.shared, **{**known, **arrays})

    def beside(self, others: Spreads) -> Spreads:
        """These and `others`, in one."""
        return Spreads.joined([self, others])

    @classmethod
    def joined(cls, several: Sequence[Spreads]) -> Spreads:
        """All of them, in one."""
        every = {
            name: np.concatenate([getattr(each, name) for each in several]) for name in ARRAYS
        }  # fmt: skip
        return cls(shared=several[0].shared, **every)

    def chunks(self) -> Iterator[Spreads]:
        """These in parts of a size that is quick to evaluate."""
        for first in range(0, max(1, self.size), _CHUNK):
            yield self.part(slice(first, first + _CHUNK))

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
    def inside_data(self) -> Array:
        """Devices between neighbours of a context or of a data-parallel group."""
        return self.tensor * np.where(self.placement == 1, self.pipeline, 1.0)

    @property
    def inside_pipeline(self) -> Array:
        """Devices between neighbours of a pipeline."""
        within = self.context * self.data * self.replicas
        return self.tensor * np.where(self.placement == 1, 1.0, within)

    @property
    def zero_bubble(self) -> npt.NDArray[np.bool_]:
        """Which of them cut the backward pass in two."""
        return np.asarray(self.schedule == SCHEDULES.index("zero_bubble"))

    @property
    def value_bytes(self) -> float:
        """Bytes of a weight or an activation; formats below 16 bits are cast on the way."""
        return 4.0 if self.shared.precision == "fp32" else 2.0
