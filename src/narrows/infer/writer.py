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
from narrows.infer.loading import Generator, load, no_writer
from narrows.infer.packed import PackedWriter
from narrows.infer.packing import bits_for, packed
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
    computed as it lies, another published model in bf16 by the packed decoder where that can
    compute it, anything else as `load` has it. In int8 or int4 what lies otherwise is
    rounded, and said so. Keys and values are kept in bf16, or in fp32 where torch computes so, if
    `cache` asks for nothing else. Raises BadInput where the path is none of these, is damaged, or
    cannot be packed, or an adapter is not for it.
    """
    if (path / PLAN).is_file():
        _refuse_for_runs(path, precision, adapters)
        assert precision != "int8" and precision != "int4"
        return load(path, checkpoint=checkpoint, precision=precision, cache=cache, talk=talk)
    if checkpoint is not None:
        raise BadInput(f"{path} is no run, and has no checkpoints", hint="leave it out")
    original = opened(path)
    found, bits = beside.read(original, adapters), bits_for(original, precision)
    if bits is None:
        assert precision != "int8" and precision != "int4"
        return _adapted(load(path, precision=precision, cache=cache, talk=talk), found)
    if not original.spec.writes:
        raise no_writer(path)
    words = published.words(original.path, original.facts)
    published.refuse_foreign(words.tokenizer, original.spec.vocabulary, path)
    model = packed(original, bits=bits, talk=talk)
    named = {name: beside.packed(each) for name, each in found.items()}
    writer = PackedWriter(original.spec, words, model, cache or "bf16", named)
    talk(writer.told(path, original.kind))
    return writer


def _adapted(generator: Generator, adapters: Mapping[str | None, TheirAdapter]) -> Generator:
    found = {name: beside.adapted(generator.model, each) for name, each in adapters.items()}
    own = found.pop(None, generator.model)
    return generator._replace(model=own, adapted=found)


def _refuse_for_runs(
    run: Path, precision: ServingPrecision | None, adapters: Folders
) -> None:  # fmt: skip
    if precision == "int8" or precision == "int4":
        raise BadInput(
            f"{run} is a run, whose weights are not packed here",
            hint=f"narrows export {run} --to model.gguf, and give that",
        )
    if adapters:
        raise BadInput(
            f"{run} is a run, and adapters are made for published models",
            hint=f"narrows export {run} --to {run.name}-hf, and give that",
        )
