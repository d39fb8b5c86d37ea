"""The quickest way that a model goes on with texts here.

load_writer(path) → Writer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from narrows.adapt.peft_reading import TheirAdapter
from narrows.data import published
from narrows.infer import beside
from narrows.infer.generate import Folders, ServingPrecision, Writer
from narrows.infer.loading import Generator, load
from narrows.infer.packed import PackedWriter
from narrows.infer.packing import chosen, packed
from narrows.model.folder import PLAN
from narrows.model.opening import opened
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision

Talk = Callable[[str], None]


def load_writer(
    path: Path, *, checkpoint: str | None = None, precision: ServingPrecision | None = None,
    cache: CachePrecision | None = None, adapters: Folders = MappingProxyType({}),
    talk: Talk = lambda text: None,
) -> Writer:  # fmt: skip
    """The model of a run folder, of a published model's folder, or of a GGUF file, and `adapters`
    beside it by their names; that of the name None is what it writes with otherwise.

    Where no `precision` is asked for, a file whose matrices lie in groups of 4 to 8 bits is
    computed as it lies, another published model in bf16, as is a run that was trained so, by the
    packed decoder where that can compute it, anything else as `load` has it. In int8 or int4 what
    lies otherwise is rounded, and said so. Keys and values are kept in bf16, or in fp32 where torch
    computes so, if `cache` asks for nothing else. Raises BadInput where the path is none of these,
    is damaged, or cannot be packed, or an adapter is not for it.
    """
    is_run = (path / PLAN).is_file()
    if is_run and adapters:
        raise BadInput(
            f"{path} is a run, and adapters are made for published models",
            hint=f"narrows export {path} --to {path.name}-hf, and give that",
        )
    if checkpoint is not None and not is_run:
        raise BadInput(f"{path} is no run, and has no checkpoints", hint="leave it out")
    found = beside.read(opened(path), adapters) if adapters else {}
    what = chosen(path, precision, checkpoint)
    if what is None:
        assert precision != "int8" and precision != "int4"
        generator = load(
            path, checkpoint=checkpoint, precision=precision, cache=cache, talk=talk
        )  # fmt: skip
        return _adapted(generator, found)
    spec, words = what.given.spec, what.given.words or published.of_folder(path)
    published.refuse_foreign(words.tokenizer, spec.vocabulary, path)
    named = {name: beside.packed(each) for name, each in found.items()}
    writer = PackedWriter(spec, words, packed(what, talk=talk), cache or "bf16", named)
    talk(writer.told(f"{path}{what.called}"))
    return writer


def _adapted(generator: Generator, adapters: Mapping[str | None, TheirAdapter]) -> Generator:
    found = {name: beside.adapted(generator.model, each) for name, each in adapters.items()}
    own = found.pop(None, generator.model)
    return generator._replace(model=own, adapted=found)
