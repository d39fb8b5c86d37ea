"""Adapters as others have them: a run's written alone in PEFT's format, one of PEFT's merged in.

write(run, to) → what was written;   merged(path, folder) → Source, for `export_source`
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from narrows.adapt.merge import merge_proven
from narrows.adapt.peft import write_adapter
from narrows.adapt.peft_reading import load_adapter
from narrows.adapt.trained import tuned
from narrows.infer.checkpoint import locate, saved, step
from narrows.infer.source import Source, of_original
from narrows.model import hugging_face
from narrows.model.folder import PLAN
from narrows.model.opening import build, opened
from narrows.parallel.saved import Whole
from narrows.spec.adapter import LowRank
from narrows.spec.errors import BadInput
from narrows.spec.plan import Plan
from narrows.spec.record import load


def write(run: Path, to: Path, checkpoint: str | None = None) -> str:
    """The low-rank adapter that a run learned, in a new folder; returns what it is. Raises BadInput
    where it learned none, or PEFT could not read it.
    """
    plan = load(Plan, run / PLAN)
    published = plan.start is not None and plan.start.family in hugging_face.NAMINGS
    if not isinstance(plan.adapter, LowRank) or plan.start is None or not published:
        raise BadInput(
            f"{run} has learned no low-rank adapter beside a published model",
            hint=f"the whole model: narrows export {run} --to {run.name}-hf",
        )
    if to.exists():
        raise BadInput(f"{to} exists already", hint=f"remove it, or take another: --to {to}-2")
    found = locate(run, checkpoint)
    model = tuned(plan, Whole(saved(found)))
    names = hugging_face.naming(plan.start.family, plan.model)
    try:
        write_adapter(to, model, names, base=plan.start.path)
    except BaseException:
        shutil.rmtree(to, ignore_errors=True)
        raise
    return f"the adapter of {run}, step {step(found)}, beside {plan.start.path}"


def merged(path: Path, folder: Path) -> Source:
    """A published model with an adapter of PEFT's in its matrices; raises BadInput where one is not
    made for the other, RunFailed where the merged model says something else.
    """
    original = opened(path)
    model = build(original, torch.float32, torch.device("cpu")).eval()
    load_adapter(model, folder, original.published_naming)
    if original.spec.writes and not original.spec.classes:
        merge_proven(model)
    given = of_original(original)
    weights = {name: each.detach() for name, each in model.named_parameters()}
    return given._replace(
        what=f"{path} with {folder}", weights=weights, groups={}, reader=None, changed=True
    )
