"""What is to be exported: a model's shape, its weights still unread, its words, and its own files.

source(path) → Source, of a run, a published model's folder, or a GGUF file
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from narrows.adapt.trained import whole
from narrows.data import published, tokenizers
from narrows.data.published import Words
from narrows.infer.checkpoint import locate, saved, step
from narrows.model.blocks import Groups
from narrows.model.configuration import family
from narrows.model.folder import CONFIG, PLAN
from narrows.model.mapped import Tensors
from narrows.model.naming import OURS
from narrows.model.opening import Original, opened
from narrows.model.reading import Reader, Unread
from narrows.model.safetensors import Safetensors
from narrows.model.writing import parameters
from narrows.parallel.saved import Whole
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec, Rotary
from narrows.spec.objective import Classify
from narrows.spec.plan import Plan, Start
from narrows.spec.record import load, read


class Source(NamedTuple):
    """A model by our names: any mapping of weights that fits the spec, so that what an adapter was
    merged into is one, too. `dtype` is the type that they came in, None where they were packed;
    those that are `changed` since hold more than it does.

    Of a published model `kind` is its family, `folder` where its other files are, `config` and
    `facts` what its config.json or the header of its GGUF file says, `there` what its files call
    each tensor, and `left` are tensors of its files that we have no place for. `labels` are those
    of a head for classes, none where it says a number.

    `groups` are matrices that lie in groups and are to be written so, by our names; their values
    are among the weights, too. `reader` has read the weights of a published model; those of a run
    are of a `step`.
    """

    what: str
    spec: ModelSpec
    weights: Mapping[str, Tensor]
    dtype: torch.dtype | None
    words: Words | None
    kind: str | None = None
    folder: Path | None = None
    config: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] | None = None
    there: Mapping[str, str] = {}
    left: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    groups: Mapping[str, Groups] = MappingProxyType({})
    reader: Reader | None = None
    step: int | None = None
    changed: bool = False


def source(path: Path, checkpoint: str | None = None) -> Source:
    """The model at `path`; raises BadInput where there is none, or it is damaged."""
    if (path / PLAN).is_file():
        return _of_run(path, checkpoint)
    if checkpoint is not None:
        raise BadInput(f"{path} is no run, and has no checkpoints", hint="leave it out")
    return of_original(opened(path))


def of_original(original: Original) -> Source:
    """A published model."""
    spec, naming, tensors, path = original.spec, original.naming, original.tensors, original.path
    shapes = parameters(spec)
    reader = Reader(shapes, spec, naming, tensors)
    silent = path.is_dir() and not (path / tokenizers.FILE).is_file()
    words = None if silent else published.words(path, original.facts)
    left = tuple(name for name in tensors.names() if naming.leaves(name))
    given = Source(
        str(path), spec, Unread(shapes, reader), _dtype(tensors), words, original.kind, left=left,
        labels=original.labels, reader=reader,
    )  # fmt: skip
    return given._replace(**_own(original))


def _own(original: Original) -> dict[str, Any]:
    """What the files of a published model say beside its weights."""
    if original.facts is not None:
        return {"facts": original.facts}
    folder = original.path
    if original.naming is OURS:
        return {}
    kind, config = family(folder / CONFIG)
    # Within a model that sees, too, names are others than those of the text model alone.
    alone = read(folder / CONFIG).get("model_type") == kind
    there = original.naming.there(original.tensors.names()) if alone else {}
    told = {**config.data, "model_type": kind}
    return {"folder": folder, "config": told, "there": there}


def _of_run(run: Path, checkpoint: str | None) -> Source:
    plan = load(Plan, run / PLAN)
    spec = plan.model
    found = locate(run, checkpoint)
    weights: Mapping[str, Tensor] = Whole(saved(found))
    if not plan.learning.everything:
        weights = dict(whole(plan, weights).named_parameters())
    words = published.of_folder(run) if (run / tokenizers.FILE).is_file() else None
    after = step(found)
    what = f"{run}, step {after}"
    labels = None
    if spec.classes:
        labels = plan.objective.labels if isinstance(plan.objective, Classify) else ()
    dtype = weights[next(iter(weights))].dtype
    given = Source(what, spec, weights, dtype, words, labels=labels, step=after)
    return given if plan.start is None else _tuned(given, plan.start)


def _tuned(given: Source, start: Start) -> Source:
    """What was trained from a published model: of its family, and of its own files as long as they
    are there; over as many positions, unless it learned one by one.
    """
    given = given._replace(kind=start.family)
    if isinstance(given.spec.positions, Rotary):
        long = {"context": start.model.context, "window": start.model.window}
        given = given._replace(spec=msgspec.structs.replace(given.spec, **long))
    if not Path(start.path).exists():
        return given
    original = opened(start.path)
    return given._replace(**_own(original)) if original.digest() == start.digest else given


def _dtype(tensors: Tensors) -> torch.dtype | None:
    """The one that all weights have; fp32 of several plain ones; None where any is packed."""
    if not isinstance(tensors, Safetensors):
        return None
    found = {tensors.dtype(name) for name in tensors.names()}
    floats = {each for each in found if each.is_floating_point}
    return floats.pop() if len(floats) == 1 else torch.float32
