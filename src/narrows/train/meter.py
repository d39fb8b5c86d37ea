"""What of a run's memory is known by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from narrows.parallel.split import local
from narrows.spec.ledger import MemoryPeak
from narrows.train.step import Trainer


def memory_peak(trainer: Trainer, peak: float) -> MemoryPeak:
    """The measured peak; what tensors are known to hold is named, the rest is activations with
    their workspace. A heap that was large before the start grows less than it holds: the tensors
    are the least.
    """
    optimizer = trainer.optimizer
    weights = sum(local(p).nbytes for p in trainer.model.parameters())
    learning = sum(p.nbytes for p in optimizer.parameters.values())
    state = optimizer.state()
    masters = sum(t.nbytes for name, t in state.items() if name.startswith("rest."))
    moments = sum(t.nbytes for name, t in state.items() if not name.startswith("rest."))
    if optimizer.place.away:
        masters, moments = 0, optimizer.place.at_hand(masters + moments)
    moments += sum(t.numel() * 4 for t in _exchanged(trainer))
    gradients = sum(t.numel() * 4 for t in optimizer.sums.values()) or learning
    if trainer.plan.optimizer.fused:
        gradients = max(p.nbytes for p in optimizer.parameters.values())
    known = float(weights + masters + moments + gradients)
    peak = max(peak, known)
    return MemoryPeak(
        weights=float(weights), masters=float(masters), gradients=float(gradients),
        optimizer=float(moments), activations=max(0.0, peak - known), peak=peak,
    )  # fmt: skip


def _exchanged(trainer: Trainer) -> Iterator[Tensor]:
    """What the exchange of gradients keeps between steps."""
    if trainer.outer is not None:
        yield from (*trainer.outer.begun.values(), *trainer.outer.momentum.values())
    if trainer.split.compressed is not None:
        yield from trainer.split.compressed.own().values()
