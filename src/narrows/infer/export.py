"""A model written for other programs: a Hugging Face folder or a GGUF file, and proved to be it.

    export(path, to) → Exported

    source → outgoing tensors → a partial name → read back and compared → the name

What is not the same when it is read again never gets its name.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch

from narrows.data import published, tables
from narrows.hardware.find import memory_free
from narrows.infer import parity
from narrows.infer.loading import Talk
from narrows.infer.parity import Parity
from narrows.infer.reference import refuse_absent
from narrows.infer.source import Source, source
from narrows.model import describing, ggml, gguf, hugging_face, safetensors
from narrows.model.blocks import BLOCKS, Block
from narrows.model.folder import CONFIG, INDEX
from narrows.model.settings import Settings
from narrows.model.writing import Outgoing, outgoing
from narrows.plan.words import count
from narrows.spec.errors import BadInput, DoesNotFit, nearest
from narrows.spec.units import Bytes

GGUF = ".gguf"
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
"""What llama.cpp calls a whole file of that type."""
_BLOCKS = {block.name.lower(): block for block in BLOCKS.values() if block.name.lower()
           in _FILE_TYPES}  # fmt: skip
_SMALL = ("ffn_gate_inp.weight", "position_embd.weight")
_SPARE = 64 << 20
"""Bytes beyond the weights: words, headers, what a file system needs."""
_KEPT = (".json", ".jinja", ".txt", ".model", ".md")
"""Files of a model's folder that are copied: never code, never a pickle."""
_ALONG = ("LICENSE", "NOTICE", "USE_POLICY", "LICENCE")


class Exported(NamedTuple):
    """What was written: in which type, with which files, and what comparing it gave."""

    path: Path
    what: str
    type: str
    bytes: int
    parity: Parity


def export(
    path: Path, to: Path, *, type: str | None = None, checkpoint: str | None = None,
    reference: bool = False, talk: Talk = lambda text: None,
) -> Exported:  # fmt: skip
    """Write the model at `path` to a file that ends in .gguf, or else to a folder; by default in
    the type that its weights have, fp32 where they are packed.

    Every export is read back, by the format's reference reader too where that is installed, or must
    be with `reference`. Raises BadInput where the model or the target cannot be, DoesNotFit where
    the disk has no room, RunFailed where what is read back is not the model: then nothing is kept.
    """
    return export_source(
        source(path, checkpoint), to, type=type, reference=reference, talk=talk, beside=path
    )


def export_source(
    given: Source, to: Path, *, type: str | None = None, reference: bool = False,
    talk: Talk = lambda text: None, beside: Path | None = None,
) -> Exported:  # fmt: skip
    """The same of a model that need not lie anywhere; `beside`: what must not be written into."""
    _refuse_taken(to, beside)
    type = _type(to, type, given)
    _refuse_large(given)
    for name in given.left[:1]:
        talk(
            f"left out: {name} and its like, {len(given.left)} tensors that narrows has no use for"
        )
    write = _to_gguf if to.suffix == GGUF else _to_folder
    refuse_absent(of_file=to.suffix == GGUF, needed=reference, talk=talk)
    with _partial(to) as partial:
        write(given, partial, type)
        talk(f"wrote {count(given.spec.parameters)} parameters in {type}; reading them back")
        found = parity.compare(given, partial, type, to)
        size = _size(partial)
    return Exported(to, given.what, type, size, found)


def _to_folder(given: Source, folder: Path, type: str) -> None:
    """config.json, weights, and the words: the model's own files where it came with some."""
    spec, dtype = given.spec, _DTYPES[type]
    kind = given.kind if given.config and given.kind else describing.kind_of(spec, given.kind)
    naming = hugging_face.naming(kind, spec)
    config = _config(given, kind, dtype)
    tensors = [each._replace(name=given.there.get(naming.plain(each.name), each.name))
               for each in outgoing(given.weights, spec, naming)]  # fmt: skip
    _refuse_full(folder, sum(math.prod(each.shape) for each in tensors) * dtype.itemsize)
    folder.mkdir()
    if given.folder is not None:
        _copy_along(given.folder, folder)
    elif given.words is not None:
        published.save(given.words, folder, spec.context)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    safetensors.write(folder, tensors, dtype)


def _config(given: Source, kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """The model's own where it has one, changed where the model is; else its spec, told."""
    spec = given.spec
    if given.config is None:
        words = published.numbers(given.words) if given.words else {}
        nothing = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        config = {**nothing, **words, **describing.config(spec, kind)}
    else:
        own = {"architectures": [describing.CLASSES[kind]]} if kind in describing.CLASSES else {}
        config = {**own, **given.config, "vocab_size": spec.vocabulary}
        if not describing.means(spec, kind, Settings(config, "config.json")):
            raise BadInput(
                f"{given.what} is no longer what its config.json says",
                hint="export the model as it was published, or train one from its shape",
            )
    key = "dtype" if "dtype" in config else "torch_dtype"
    head = describing.head(spec, kind, given.labels or ())
    if head and spec.causal and spec.classes and given.words is not None:
        # transformers reads the last token that is no padding, and here a text ends with this one.
        end = given.words.tokenizer.end_of_document
        if config.get("pad_token_id") == end:
            head["pad_token_id"] = None
    return {**config, **head, key: str(dtype).removeprefix("torch.")}


def _copy_along(source: Path, folder: Path) -> None:
    """What a model's makers put beside its weights, folders of settings too; no code."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        hidden = any(part.startswith(".") for part in name.parts)
        fitting = path.suffix in _KEPT or path.stem.upper() in _ALONG
        if hidden or not fitting or not path.is_file() or len(name.parts) > 2:
            continue
        if path.name not in (CONFIG, INDEX) or len(name.parts) > 1:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)


def _to_gguf(given: Source, path: Path, type: str) -> None:
    """Facts, tables of the words, and weights: matrices in the type, what is small in fp32."""
    spec = given.spec
    if spec.classes:
        what = f"{given.what} has a head for classes, and a GGUF file has no place for one"
        raise BadInput(what, hint="--to FOLDER")
    kind = ggml.kind_of(spec, given.kind)
    facts = _facts(given, kind, type)
    tensors = [
        *ggml.factors(spec),
        *outgoing(given.weights, spec, ggml.NAMINGS[kind], given.groups),
    ]
    packed = [(each, _block(each, type)) for each in tensors]
    _refuse_full(path, sum(block.bytes_of(math.prod(each.shape)) for each, block in packed))
    gguf.write(path, facts, packed)


def _facts(given: Source, kind: str, type: str) -> dict[str, Any]:
    spec = given.spec
    kind_of_file = {"general.file_type": _FILE_TYPES[type], "general.quantization_version": 2}
    if given.facts is not None:
        return {**given.facts, **ggml.facts(kind, spec), **kind_of_file}
    if given.words is None:
        raise BadInput(
            f"{given.what} has no tokenizer, which a GGUF file needs", hint="--to FOLDER"
        )
    name = Path(given.what.partition(",")[0]).name
    own = {"general.type": "model", "general.name": name}
    words = tables.facts(given.words, spec.vocabulary)
    return {**ggml.facts(kind, spec), **own, **kind_of_file, **words}


def _block(tensor: Outgoing, type: str) -> Block:
    """As llama.cpp does: norms, biases and routers in fp32; embedding and head in 8 bits where
    others have 4; fp16 where a row is no whole number of blocks.
    """
    if len(tensor.shape) == 1 or tensor.name.endswith(_SMALL):
        return _BLOCKS["f32"]
    coarse = type.startswith("q4") and tensor.name in ("token_embd.weight", "output.weight")
    block = _BLOCKS["q8_0" if coarse else type]
    return block if tensor.shape[-1] % block.values == 0 else _BLOCKS["f16"]


def _type(to: Path, wanted: str | None, given: Source) -> str:
    """The one asked for, or the weights' own; raises BadInput where the format has it not."""
    known = list(_BLOCKS if to.suffix == GGUF else _DTYPES)
    if wanted is None:
        return next((name for name, each in _DTYPES.items() if each == given.dtype), "f32")
    if wanted in known:
        return wanted
    guess = nearest(wanted, known)
    what = f"{'a GGUF file' if to.suffix == GGUF else 'a folder'} has no type {wanted}"
    hint = f"did you mean --type {guess}? " if guess else ""
    if wanted in _BLOCKS:
        hint = "packed types are GGUF's: --to FILE.gguf; "
    raise BadInput(what, hint=f"{hint}known: {', '.join(known)}")


def _refuse_taken(to: Path, beside: Path | None) -> None:
    if to.exists():
        other = to.with_stem(f"{to.stem}-2")
        raise BadInput(f"{to} exists already", hint=f"remove it, or take another: --to {other}")
    if beside is not None and beside.is_dir() and beside.resolve() in to.resolve().parents:
        raise BadInput(
            f"{to} lies within {beside}, the model that is exported",
            hint=f"choose a place outside: --to {beside.name}-exported{to.suffix}",
        )
    if not to.resolve().parent.is_dir():
        what = f"{to.resolve().parent} is no folder"
        raise BadInput(what, hint=f"mkdir -p {to.parent}")


def _refuse_large(given: Source) -> None:
    """Comparing takes the model in fp32, once at a time; writing only its largest tensor."""
    needed, free = Bytes(4.0 * given.spec.parameters), memory_free().value
    if needed > free:
        raise DoesNotFit(
            f"comparing what is written takes {needed.text()} of memory, {free.text()} are free",
            hint="export on a machine with more memory, or stop what else runs here",
        )


def _refuse_full(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.resolve().parent).free
    if size + _SPARE > free:
        raise DoesNotFit(
            f"the export needs {Bytes(size).text()}, and {Bytes(free).text()} are free there",
            hint="free some space, or take another disk or a smaller type",
        )


@contextmanager
def _partial(to: Path) -> Iterator[Path]:
    """A name beside the target to write to, which becomes the target's when all went well, and is
    gone otherwise; what a process that was killed left behind goes, too.
    """
    for left in to.parent.glob(f".{escape(to.name)}.*.partial"):
        if not _runs(left.suffixes[-2].removeprefix(".")):
            _remove(left)
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        yield partial
        if to.exists():
            raise BadInput(f"{to} was made meanwhile", hint="choose another name: --to")
        partial.rename(to)
    finally:
        _remove(partial)


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(each.stat().st_size for each in files if each.is_file())
