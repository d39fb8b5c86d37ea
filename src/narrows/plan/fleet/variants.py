"""What somebody fixes of a layout, and the variants of layouts in what they left open.

A search evaluates every structure first and then, of the promising ones, each combination of the
choices below: they change a step by a few percent, and all of them at once would be too many.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from narrows.plan.fleet.spreads import RECOMPUTES, SCHEDULES, Spreads
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Spread

# Layers fewer in the first stage and in the last.
_FEWER = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 1))
# Beside a weight in bf16 the rest of its master; one in fp32 is its own (train/optimizer.py).
_MASTER_BYTES = {"bf16": 2.0, "fp32": 0.0}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What of a layout is fixed; None is searched."""

    precision: str = "bf16"
    tensor: int | None = None
    pipeline: int | None = None
    context: int | None = None
    expert: int | None = None
    micro_batch: int | None = None
    interleave: int | None = None
    first_fewer: int | None = None
    last_fewer: int | None = None
    sharding: str | None = None
    recompute: str | None = None
    schedule: str | None = None
    placement: str | None = None
    exchange: str | None = None
    reshard: bool | None = None
    trained: float = 1.0
    reached: float = 1.0
    logits: bool = True
    stored_bits: float | None = None
    state_bits: int = 32
    offload: str = "none"
    chunked_loss: bool = False
    sequence_parallel: bool = True

    @property
    def shared(self) -> Spread:
        """What all layouts of a search have in common."""
        return Spread(
            precision=self.precision,  # type: ignore[arg-type]
            state_bits=self.state_bits,  # type: ignore[arg-type]
            offload=self.offload,  # type: ignore[arg-type]
            trained=self.trained, reached=self.reached, logits=self.logits,
            stored_bits=self.stored_bits, chunked_loss=self.chunked_loss,
            sequence_parallel=self.sequence_parallel, master_bytes=self.master_bytes,
        )  # fmt: skip

    @property
    def master_bytes(self) -> float:
        """As our own loop keeps them; of what it does not run, as stacks do that do."""
        own = _MASTER_BYTES.get(self.precision) if self.offload == "none" else None
        return 4.0 if own is None else own

    def free(self) -> Wanted:
        """The same work with nothing of its layout fixed."""
        searched: dict[str, None] = {
            field.name: None
            for field in msgspec.structs.fields(self)
            if field.default is None and field.name != "stored_bits"
        }
        return replace(self, **searched)


def refined(work: Work, spreads: Spreads, wanted: Wanted) -> Spreads:
    """What differs from `spreads` in choices that matter less, all combinations of them."""
    known = spreads.size
    for change in (_unevenly, _v_shaped, _neighbours, _dealt, _kept, _pointwise):
        others = change(work, spreads, wanted)
        spreads = spreads.beside(others) if others is not None and others.size else spreads
    return spreads.part(slice(known, None))


def _v_shaped(work: Work, spreads: Spreads, wanted: Wanted) -> Spreads | None:
    """Two pieces a stage in a V, backward passes cut in two."""
    if wanted.schedule is not None or wanted.interleave not in (None, 2):
        return None
    part = spreads.part(np.flatnonzero((spreads.interleave == 1) & bends(work, spreads)))
    ones = np.ones(part.size)
    return part.changed(
        schedule=SCHEDULES.index("zero_bubble") * ones, interleave=2.0 * ones
    )  # fmt: skip


def bends(work: Work, spreads: Spreads) -> npt.NDArray[np.bool_]:
    """Which of them may lie in a V: micro-batches fill it, and its pieces, two a stage, are alike,
    maybe but for the embedding and the head.
    """
    p, most = spreads.pipeline, np.maximum(spreads.first_fewer, spreads.last_fewer)
    layers = work.layers + spreads.first_fewer + spreads.last_fewer
    alike = (layers % (2.0 * p) == 0) | ((most == 0) & ((layers + 2.0) % (2.0 * p) == 0))
    room = 2.0 * p * np.maximum(1.0, most) <= layers
    return np.asarray((p > 1) & alike & room & (spreads.accumulation >= p))


def _neighbours(work: Work, spreads: Spreads, wanted: Wanted) -> Spreads | None:
    """Stages next to each other, data-parallel ranks apart."""
    if wanted.placement is not None:
        return None
    part = spreads.part(np.flatnonzero(spreads.pipeline > 1))
    return part.changed(placement=np.ones(part.size))


def _unevenly(work: Work, spreads: Spreads, wanted: Wanted) -> Spreads | None:
    """Fewer layers where the embedding and the head are."""
    if wanted.first_fewer is not None or wanted.last_fewer is not None:
        return None
    parts: Spreads | None = None
    even = (spreads.pipeline > 1) & (spreads.first_fewer == 0)
    for first, last in _FEWER:
        each = (work.layers + first + last) / spreads.pipeline
        whole = np.mod(each, spreads.interleave) == 0
        room = (each > max(first, last)) & (each >= spreads.interleave * max(first, last))
        part = spreads.part(np.flatnonzero(even & whole & room))
        ones = np.ones(part.size)
        part = part.changed(first_fewer=first * ones, last_fewer=last * ones)
        parts = part if parts is None else parts.beside(part)
    return parts


def _dealt(work: Work, spreads: Spreads, wanted: Wanted) -> Spreads | None:
    """Heads dealt out among the ranks of a context."""
    if wanted.exchange is not None:
        return None
    fine = (spreads.context > 1) & (work.spec.heads % (spreads.tensor * spreads.context) == 0)
    part = spreads.part(np.flatnonzero(fine))
    return part.changed(exchange=np.ones(part.size))


def _kept(work: Work, spreads: Spreads, wanted: Wanted) -> Spreads | None:
    """Gathered parameters kept until they are needed backward."""
    if wanted.reshard is not None:
        return None
    part = spreads.part(np.flatnonzero((spreads.sharding == 3) & (spreads.shards > 1)))
    return part.changed(reshard=np.zeros(part.size))


def _pointwise(work: Work, spreads: Spreads, wanted: Wanted) -> Spreads | None:
    """Norms and activations computed again."""
    if wanted.recompute is not None:
        return None
    part = spreads.part(np.flatnonzero(spreads.recompute == 0))
    return part.changed(recompute=np.full(part.size, float(RECOMPUTES.index("pointwise"))))
