"""What of a trainer a checkpoint keeps, and the way back, whatever layout wrote it."""

from __future__ import annotations

from pathlib import Path

from narrows.parallel.saved import Saved
from narrows.train.checkpoint import Checkpoints, Contents, State, base, files
from narrows.train.step import Trainer


def contents(trainer: Trainer) -> Contents:
    """What this process has to write."""
    split, optimizer = trainer.split, trainer.optimizer
    return Contents(
        weights={n: p for n, p in optimizer.parameters.items() if n in split.owned},
        optimizer={n: t for n, t in optimizer.state().items() if base(n) in split.owned},
        parts=split.parts,
    )


def restore(trainer: Trainer, checkpoint: Path) -> None:
    """Take this process's parts out of a checkpoint."""
    parts, optimizer = trainer.split.parts, trainer.optimizer
    weights, states = Saved(files(checkpoint, "weights")), Saved(files(checkpoint, "optimizer"))
    for name, own in optimizer.parameters.items():
        own.copy_(weights.read(name, parts[name]))
    optimizer.load(lambda name: states.read(name, parts[base(name)]))


def newest(trainer: Trainer, checkpoints: Checkpoints) -> tuple[Path, State] | None:
    """The newest good checkpoint, as the first process finds it: one reads and checks all files,
    and all take the same.
    """
    found = checkpoints.newest() if trainer.ranks.first else None
    step = int(trainer.split.total(float(found[1].step + 1) if found else 0.0)) - 1
    return checkpoints.at(step) if step >= 0 else None
