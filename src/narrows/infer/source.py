"""What is to be exported: a model's shape, its weights still unread, its words, and its own files.

source(path) → Source, of a run, a published model's folder, or a GGUF file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from narrows.data import published, tokenizers
from narrows.data.published import Words
from narrows.infer.checkpoint import locate, saved, step
from narrows.infer.loading import PLAN, words_of
from narrows.model.configuration import family
from narrows.model.mapped import Tensors
from narrows.model.opening import CONFIG, Original, opened
from narrows.model.reading import Unread
from narrows.model.safetensors import Safetensors
from narrows.model.writing import parameters
from narrows.parallel.saved import Saved
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan
from narrows.spec.record import load, read


class Source(NamedTuple):
    """A model by our names: any mapping of weights that fits the spec, so that what an adapter was
    merged into is one, too. `dtype` is the type that they came in, None where they were packed.

    Of a published model `kind` is its family, `folder` where its other files are, `config` and
    `facts` what its config.json or the header of its GGUF file says, `there` what its files call
    each tensor, and `left` are tensors of its files that we have no place for.
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


def source(path: Path, checkpoint: str | None = None) -> Source:
    """The model at `path`; raises BadInput where there is none, or it is damaged."""
    if (path / PLAN).is_file():
        return _of_run(path, checkpoint)
    if checkpoint is not None:
        raise BadInput(f"{path} is no run, and has no checkpoints", hint="leave it out")
    return of_original(opened(path))


def of_original(original: Original) -> Source:
    """A published model."""
    spec, naming, tensors = original.spec, original.naming, original.tensors
    weights = Unread(parameters(spec), spec, naming, tensors)
    given = Source(
        str(original.source if isinstance(original.source, Path) else original.source.file.path),
        spec, weights, _dtype(tensors), None, original.kind,
        left=tuple(name for name in tensors.names() if naming.leaves(name)),
    )  # fmt: skip
    if not isinstance(original.source, Path):
        return given._replace(words=words_of(original), facts=original.source.facts)
    folder = original.source
    words = words_of(original) if (folder / tokenizers.FILE).is_file() else None
    kind, config = family(folder / CONFIG)
    told = {**config.data, "model_type": kind}
    # Within a model that sees, too, names are others than those of the text model alone.
    alone = read(folder / CONFIG).get("model_type") == kind
    there = naming.there(tensors.names()) if alone else {}
    return given._replace(words=words, folder=folder, config=told, there=there)


def _of_run(run: Path, checkpoint: str | None) -> Source:
    plan = load(Plan, run / PLAN)
    found = locate(run, checkpoint)
    weights = _Whole(saved(found))
    words = None
    if (run / tokenizers.FILE).is_file():
        words = published.Words(tokenizers.read(run / tokenizers.FILE))
    what = f"{run}, step {step(found)}"
    return Source(what, plan.model, weights, weights[next(iter(weights))].dtype, words)


@final
class _Whole(Mapping[str, Tensor]):
    """A checkpoint's tensors, each put together when it is asked for."""

    def __init__(self, files: Saved) -> None:
        self._files, self._names = files, list(files.names())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._files.whole(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _dtype(tensors: Tensors) -> torch.dtype | None:
    """The one that all weights have; fp32 of several plain ones; None where any is packed."""
    if not isinstance(tensors, Safetensors):
        return None
    found = {tensors.dtype(name) for name in tensors.names()}
    floats = {each for each in found if each.is_floating_point}
    return floats.pop() if len(floats) == 1 else torch.float32
