"""A model evaluated: loaded, asked in the manner wanted, and what came out written down.

assess(path, data, manner) → Assessment
"""

from __future__ import annotations

from pathlib import Path

import torch

from narrows import __version__
from narrows.evaluate import answers, documents, harness
from narrows.evaluate.assessment import Assessment, Data, Found, Manner, Rows, Tasks, Texts
from narrows.evaluate.progress import Progress, Talk
from narrows.infer.checkpoint import locate
from narrows.infer.loading import PLAN, Generator, load
from narrows.plan.layouts import TrainingPrecision


def assess(
    path: Path, data: Data, manner: Manner, *, checkpoint: str | None = None, talk: Talk
) -> Assessment:
    """What `data` says of the model at `path`, which `infer.loading.load` opens.

    Raises BadInput where the model or the data cannot be used.
    """
    if isinstance(data, Tasks):
        harness.refuse_absent()
    precision = manner.precision or "fp32"
    generator = load(path, checkpoint=checkpoint, precision=precision, talk=talk)
    named = locate(path, checkpoint).name if (path / PLAN).is_file() else None
    watch = Progress(talk, "")
    found = _found(generator, data, manner, talk)
    return Assessment(
        model=str(path), checkpoint=named, precision=_precision(generator), data=data,
        sha256=found.sha256, manner=manner, metrics=found.metrics, items=found.items,
        tokens=found.tokens, bytes=found.bytes, seconds=watch.seconds, notes=found.notes,
        narrows=__version__,
    )  # fmt: skip


def _found(generator: Generator, data: Data, manner: Manner, talk: Talk) -> Found:
    match data:
        case Texts():
            return documents.read(generator, data, manner, talk)
        case Rows():
            return answers.answer(generator, data, manner, talk)
        case Tasks():
            return harness.run(generator, data, manner, talk)


def _precision(generator: Generator) -> TrainingPrecision:
    return "bf16" if generator.model.head_VD.dtype == torch.bfloat16 else "fp32"
