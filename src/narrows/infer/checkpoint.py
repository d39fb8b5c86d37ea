"""Find a run's checkpoint and read its weights, or say what is wrong with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrows.spec.errors import BadInput, nearest
from narrows.spec.record import read
from narrows.spec.resuming import resuming

if TYPE_CHECKING:
    from torch import Tensor

    from narrows.parallel.saved import Saved


def locate(run: Path, name: str | None = None) -> Path:
    """The folder of checkpoint `name`: best, latest, or a step's; None is best, else latest."""
    folder = run / "checkpoints"
    steps = sorted(path.name for path in folder.glob("step-*") if path.suffix != ".partial")
    if not steps:
        hint = f"wait for its first one, or go on: {resuming(run)}"
        raise BadInput(f"{run} has no checkpoint yet", hint=hint)
    if name is None:
        name = "best" if (folder / "best").exists() else "latest"
    if name not in ("best", "latest"):
        if name not in steps:
            guess = nearest(name, ("best", "latest", *steps))
            hint = f"did you mean {guess}?" if guess else f"there are best, latest, {steps[-1]}"
            raise BadInput(f"{run} has no checkpoint {name}", hint=hint)
        return folder / name
    try:
        meant = (folder / name).read_text().strip()
    except FileNotFoundError:
        raise BadInput(f"{run} has no {name} checkpoint yet", hint=_instead(steps[-1])) from None
    if meant not in steps:
        what = f"{folder / name} names {meant or 'nothing'}, which is not there"
        raise BadInput(what, hint=_instead(steps[-1]))
    return folder / meant


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors, put together where several processes wrote them, once their
    checksums hold; BadInput otherwise. An average of the weights answers before the last of them.
    """
    found = saved(checkpoint)
    try:
        return {name: found.whole(name) for name in found.names()}
    except BadInput as error:
        raise BadInput(error.what, hint=_others(checkpoint)) from None


def saved(checkpoint: Path) -> Saved:
    """The same, not read yet."""
    from narrows.parallel.saved import Saved

    sums = _state(checkpoint).get("sha256", {})
    averages = sorted(name for name in sums if name.startswith("average"))
    found = averages or sorted(name for name in sums if name.startswith("weights"))
    names = found or ["weights.safetensors"]
    for name in names:
        path = checkpoint / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise BadInput(f"{path} does not exist", hint=_others(checkpoint)) from None
        if digest != sums.get(name):
            what = f"{path} is damaged: it does not match the checksum in state.json"
            raise BadInput(what, hint=_others(checkpoint))
    try:
        return Saved(checkpoint / name for name in names)
    except BadInput as error:
        raise BadInput(error.what, hint=_others(checkpoint)) from None


def join(checkpoint: Path, to: Path) -> Path:
    """Write the checkpoint's weights, by however many processes, as one model.safetensors in the
    folder `to`, whole or not at all; returns its path.
    """
    from safetensors.torch import save_file

    found = weights(checkpoint)
    to.mkdir(parents=True, exist_ok=True)
    path = to / "model.safetensors"
    partial = path.with_suffix(".partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def step(checkpoint: Path) -> int:
    """After how many steps the checkpoint was written."""
    return int(_state(checkpoint).get("step", 0))


def _state(checkpoint: Path) -> dict[str, Any]:
    """state.json, of which `train` keeps the record; two of its fields matter here."""
    state = read(checkpoint / "state.json")
    if not isinstance(state, dict) or not isinstance(state.get("sha256", {}), dict):
        what = f"{checkpoint / 'state.json'} does not describe a checkpoint"
        raise BadInput(what, hint=_others(checkpoint))
    return state


def _others(damaged: Path) -> str:
    """Another checkpoint to use."""
    steps = sorted(path.name for path in damaged.parent.glob("step-*") if path.is_dir())
    others = [name for name in steps if name != damaged.name and not name.endswith(".partial")]
    return _instead(others[-1]) if others else "it is the only one: train again"


def _instead(name: str) -> str:
    return f"use another: --checkpoint {name}"
