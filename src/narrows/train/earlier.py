"""What a run has learned so far, as a model for another to start from.

    laid_out(run) → a folder: model.toml, model.safetensors and the words, which nobody changes

A run goes on and drops its checkpoints, and what starts from it is to resume bit for bit: so its
newest whole checkpoint is copied, once, under a name made of what it holds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from narrows.adapt.trained import whole
from narrows.data import tokenizers
from narrows.data.published import FILES as WORDS
from narrows.model import safetensors
from narrows.model.folder import OWN, PLAN, Own
from narrows.model.naming import OURS
from narrows.model.writing import outgoing
from narrows.parallel.saved import Saved, Whole
from narrows.spec.errors import BadInput
from narrows.spec.home import narrows_home
from narrows.spec.plan import Plan
from narrows.spec.record import load, save
from narrows.spec.resuming import resuming
from narrows.train.checkpoint import files, newest

Talk = Callable[[str], None]
_FAMILY = "narrows"
"""Of a model that is of nobody's making but ours."""


def laid_out(run: Path, talk: Talk) -> Path:
    """The folder of the run's newest whole checkpoint, an adapter merged into the model that it was
    trained beside.

    Raises BadInput where there is no checkpoint or no tokenizer, or what the run itself began with
    is gone; RunFailed where its adapter cannot be merged exactly.
    """
    plan = load(Plan, run / PLAN)
    found = newest(run / "checkpoints", talk)
    if found is None:
        what = f"{run} has no whole checkpoint yet"
        raise BadInput(what, hint=f"wait for its first one, or: {resuming(run)}")
    if not (run / tokenizers.FILE).is_file():
        hint = "copy it from the prepared dataset: dataset.json names the folder"
        raise BadInput(f"{run} has no {tokenizers.FILE}", hint=hint)
    checkpoint = found[0]
    final = narrows_home() / "starts" / _digest(run, checkpoint)
    talk(f"starting from {run}, step {found[1].step}")
    if not (final / OWN).is_file():
        partial = final.with_suffix(f".{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(run, plan, checkpoint, partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def _write(run: Path, plan: Plan, checkpoint: Path, folder: Path) -> None:
    # An average of the weights answers before the last of them.
    saved = Saved(files(checkpoint, "average") or files(checkpoint, "weights"))
    weights: Mapping[str, Tensor] = Whole(saved)
    if not plan.learning.everything:
        weights = dict(whole(plan, weights).named_parameters())
    dtype = next(iter(weights.values())).dtype
    safetensors.write(folder, outgoing(weights, plan.model, OURS), dtype)
    for name in WORDS:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    family = _FAMILY if plan.start is None else plan.start.family
    save(Own(family=family, model=plan.model), folder / OWN)


def _digest(run: Path, checkpoint: Path) -> str:
    """Of the checkpoint's own checksums, the plan and the words."""
    said = hashlib.sha256((checkpoint / "state.json").read_bytes())
    for name in (PLAN, *WORDS):
        said.update((run / name).read_bytes() if (run / name).is_file() else b"\0")
    return said.hexdigest()[:24]
