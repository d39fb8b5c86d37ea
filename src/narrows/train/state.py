"""What of a trainer a checkpoint keeps, and the way back, whatever layout wrote it.

What ranks keep apart from each other has theirs in its name: `first@1.NAME` is a moment of the
second island, `error@1.NAME` is what the second rank left out of its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from narrows.parallel.compressed import Compressed
from narrows.parallel.parts import Part
from narrows.parallel.saved import Saved
from narrows.train.checkpoint import Checkpoints, Contents, State, base, files
from narrows.train.outer import Outer
from narrows.train.step import Trainer

Talk = Callable[[str], None]
_ALIKE_STATES = ("rest", "outer")
_ALIKE = "powersgd."


def contents(trainer: Trainer) -> Contents:
    """What this process has to write; to be asked where all processes have the same weights."""
    split, optimizer, island = trainer.split, trainer.optimizer, trainer.ranks.islands.rank
    states = {n: t for n, t in optimizer.state().items() if base(n) in split.owned}
    states = {_of(n, island): t for n, t in states.items() if not island or _apart(n)}
    weights = {n: p for n, p in optimizer.parameters.items() if n in split.owned and not island}
    if trainer.outer is not None and not island:
        momentum = trainer.outer.momentum
        states |= {f"outer.{n}": t for n, t in momentum.items() if n in split.owned}
    others = _of_other_shape(states, split.parts)
    # What all shards have alike, the one with the first values writes.
    states = {n: t for n, t in states.items() if n not in others or _first(split.parts[base(n)])}
    parts = split.parts | others
    if split.compressed is not None:
        mine = split.compressed.own()
        states |= {_of(f"error.{n}", split.compressed.rank): t for n, t in mine.items()}
        if trainer.ranks.first:
            alike = {_ALIKE + n: t for n, t in split.compressed.alike().items()}
            states |= alike
            parts = parts | {n: Part.whole(t.shape) for n, t in alike.items()}
    average = {} if island else optimizer.averages()
    average = {n: t for n, t in average.items() if n in split.owned}
    return Contents(
        weights=weights, optimizer=states, parts=parts, average=average,
        reading=optimizer.place.reading,
    )  # fmt: skip


@torch.no_grad()
def restore(trainer: Trainer, checkpoint: Path, talk: Talk) -> None:
    """Take this process's parts out of a checkpoint; what a run of more or of fewer ranks cannot
    go on with is said.
    """
    parts, optimizer = trainer.split.parts, trainer.optimizer
    weights, states = Saved(files(checkpoint, "weights")), Saved(files(checkpoint, "optimizer"))
    for name, own in optimizer.parameters.items():
        own.copy_(weights.read(name, parts[name]))
    islands = trainer.ranks.islands
    there = max((_ranks(states.names(), kind) for kind in optimizer.kinds()), default=islands.size)
    if islands.size != there:
        talk(
            f"warning: {there} islands saved this, and {islands.size} go on: each with the "
            f"optimizer's state of one of the first {min(there, islands.size)}"
        )
    island = islands.rank % there
    others = _of_other_shape(optimizer.state(), parts)
    optimizer.load(
        lambda name: states.read(
            _of(name, island) if _apart(name) else name, others.get(name) or parts[base(name)]
        )
    )
    if trainer.outer is not None:
        _restore_outer(trainer.outer, states, parts)
    if trainer.split.compressed is not None:
        _restore_compressed(trainer.split.compressed, states, parts, talk)


def newest(trainer: Trainer, checkpoints: Checkpoints) -> tuple[Path, State] | None:
    """The newest good checkpoint, as the first process finds it: one reads and checks all files,
    and all take the same.
    """
    found = checkpoints.newest() if trainer.ranks.first else None
    told = float(found[1].step + 1) if found else 0.0
    step = int(trainer.split.total(told, trainer.ranks.everyone)) - 1
    return checkpoints.at(step) if step >= 0 else None


def _restore_outer(outer: Outer, states: Saved, parts: dict[str, Part]) -> None:
    for name, momentum in outer.momentum.items():
        momentum.copy_(states.read(f"outer.{name}", parts[name]))
    outer.restored()


def _restore_compressed(
    compressed: Compressed, states: Saved, parts: dict[str, Part], talk: Talk
) -> None:
    names = list(states.names())
    alike = {
        name.removeprefix(_ALIKE): states.whole(name) for name in names if name.startswith(_ALIKE)
    }
    there = _ranks(names, "error")
    own: dict[str, Tensor] = {}
    if there == compressed.ranks:
        mine = [name for name in names if name.startswith(_of("error.", compressed.rank))]
        own = {base(name): states.read(name, parts[base(name)]) for name in mine}
    elif there:
        talk(
            f"warning: {there} ranks saved this, and {compressed.ranks} go on: what PowerSGD left "
            "out of their last gradients is lost"
        )
    compressed.load(own, alike)


def _of_other_shape(states: dict[str, Tensor], parts: dict[str, Part]) -> dict[str, Part]:
    """States that have not their parameter's shape, of which each process has the whole."""
    found = {n: tuple(t.shape) for n, t in states.items() if base(n) in parts}
    return {n: Part.whole(s) for n, s in found.items() if s != parts[base(n)].local_shape}


def _first(part: Part) -> bool:
    return all(ranges and ranges[0][0] == 0 for ranges in part.ranges)


def _of(name: str, rank: int) -> str:
    """The name of what one of several ranks keeps apart; the first has none in it."""
    kind, _, rest = name.partition(".")
    return f"{kind}@{rank}.{rest}" if rank else name


def _apart(name: str) -> bool:
    return name.partition(".")[0] not in _ALIKE_STATES


def _ranks(names: Iterable[str], kind: str) -> int:
    """How many ranks have saved theirs of a kind."""
    heads = {name.partition(".")[0] for name in names}
    return sum(head.partition("@")[0] == kind for head in heads)
