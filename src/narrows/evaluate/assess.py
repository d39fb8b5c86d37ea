"""A model evaluated: loaded, asked in the manner wanted, and what came out written down.

assess(path, data, manner) → Assessment
"""

from __future__ import annotations

from pathlib import Path

from narrows import __version__
from narrows.evaluate import answers, documents, harness, judging
from narrows.evaluate.assessment import (
    Assessment,
    Data,
    Found,
    Manner,
    Rows,
    Taken,
    Tasks,
    Texts,
)
from narrows.evaluate.passes import Passes, precision
from narrows.evaluate.progress import Progress, Talk
from narrows.infer import classifier
from narrows.infer.account import device
from narrows.infer.checkpoint import locate
from narrows.infer.classifier import Classifier
from narrows.infer.loading import Generator, load
from narrows.kernels.meter import MemoryMeter
from narrows.model.folder import PLAN
from narrows.spec.errors import BadInput


def assess(
    path: Path, data: Data, manner: Manner, *, checkpoint: str | None = None, talk: Talk
) -> Assessment:
    """What `data` says of the model at `path`, which `infer.loading.load` opens, or
    `infer.classifier.load` where it says one thing of a text.

    Raises BadInput where the model or the data cannot be used.
    """
    if isinstance(data, Tasks):
        harness.refuse_absent()
    wanted = manner.precision or "fp32"
    memory = MemoryMeter(device())
    given: Generator | Classifier
    if classifier.is_one(path):
        given = classifier.load(path, checkpoint, wanted)
    else:
        given = load(path, checkpoint=checkpoint, precision=wanted, talk=talk)
    named = locate(path, checkpoint).name if (path / PLAN).is_file() else None
    watch = Progress(talk, "")
    passes = Passes(given.model)
    found = _found(given, data, manner, passes, talk)
    # A heap that was large before grows less than it holds: the weights are the least.
    weights = sum(each.nbytes for each in given.model.parameters())
    measured = Taken(seconds=passes.seconds, memory=float(max(memory.peak(), weights)))
    return Assessment(
        model=str(path), checkpoint=named, precision=precision(given.model), data=data,
        sha256=found.sha256, manner=manner, metrics=found.metrics, items=found.items,
        tokens=found.tokens, bytes=found.bytes, seconds=watch.seconds,
        predicted=passes.expected(passes.made), measured=measured, notes=found.notes,
        labels=found.labels, narrows=__version__,
    )  # fmt: skip


def _found(
    given: Generator | Classifier, data: Data, manner: Manner, passes: Passes, talk: Talk
) -> Found:  # fmt: skip
    if isinstance(given, Classifier):
        if isinstance(data, Rows):
            return judging.judge(given, data, manner, passes, talk)
        raise BadInput(
            "the model says one thing of a text, and cannot go on with one",
            hint="--rows FILE.jsonl with a text on each line, and its label or value",
        )
    match data:
        case Texts():
            return documents.read(given, data, manner, passes, talk)
        case Rows():
            return answers.answer(given, data, manner, passes, talk)
        case Tasks():
            return harness.run(given, data, manner, passes, talk)
