"""The quickest way that a model goes on with texts here.

load_writer(path) → Writer
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from narrows.data import published
from narrows.infer.generate import ServingPrecision, Writer
from narrows.infer.loading import PLAN, load, no_writer, set_threads
from narrows.infer.packed import Bits, PackedWriter, packs, packs_bf16
from narrows.model.opening import opened
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision

Talk = Callable[[str], None]


def load_writer(
    path: Path, *, checkpoint: str | None = None, precision: ServingPrecision | None = None,
    cache: CachePrecision | None = None, talk: Talk = lambda text: None,
) -> Writer:  # fmt: skip
    """The model of a run folder, of a published model's folder, or of a GGUF file.

    Where no `precision` is asked for, a file whose matrices lie in groups of 4 to 8 bits is
    computed as it lies, another published model in bf16 by the packed decoder where that can
    compute it, anything else as `load` has it. In int8 or int4 what lies otherwise is
    rounded, and said so. Keys and values are kept in bf16, or in fp32 where torch computes so, if
    `cache` asks for nothing else. Raises BadInput where the path is none of these, is damaged, or
    cannot be packed.
    """
    is_run = (path / PLAN).is_file()
    if precision == "int8" or precision == "int4":
        if is_run:
            raise BadInput(
                f"{path} is a run, whose weights are not packed here",
                hint=f"narrows export {path} --to model.gguf, and give that",
            )
    elif precision == "fp32" or is_run:
        return load(path, checkpoint=checkpoint, precision=precision, cache=cache, talk=talk)
    if checkpoint is not None:
        raise BadInput(f"{path} is no run, and has no checkpoints", hint="leave it out")
    original = opened(path)
    bits: Bits = 4 if precision == "int4" else 8
    if precision == "bf16" or (precision is None and not packs(original)):
        if not packs_bf16(original):
            return load(path, precision=precision, cache=cache, talk=talk)
        bits = 16
    if not original.spec.writes:
        raise no_writer(path)
    set_threads()
    words = published.words(original.path, original.facts)
    published.refuse_foreign(words.tokenizer, original.spec.vocabulary, path)
    writer = PackedWriter(original, words, bits, talk, cache or "bf16")
    threads = torch.get_num_threads()
    size = f"{original.spec.parameters / 1e6:,.0f} M parameters"
    talk(
        f"{path}: {original.kind}, {size}, {writer.precision} "
        f"({writer.weight_bytes / 1e6:,.0f} MB), {threads} thread{'s'[: threads > 1]}"
    )
    return writer
