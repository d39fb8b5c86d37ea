"""A model compressed, and a receipt of what that cost: size, quality and speed, measured here.

shrink(path, wanted) → Receipt

texts ─┬─ to calibrate with ── compress ──→ FILE.gguf
       └─ held out ── both models read it ──→ FILE.gguf.receipt.json
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch

from narrows import __version__
from narrows.adapt.method import Method, Round, Type
from narrows.adapt.quantize import Rounding, bytes_of
from narrows.data import windows
from narrows.data.windows import HELD_SHARE, Rows, Stretch
from narrows.evaluate.divergence import Divergence, by_packed, by_torch, divergences
from narrows.evaluate.progress import Talk
from narrows.evaluate.rates import Rate, rates
from narrows.hardware.find import memory_free
from narrows.infer import compress
from narrows.infer.loading import load, no_writer, set_threads
from narrows.infer.packed import PackedWriter
from narrows.infer.source import Source, source
from narrows.infer.writer import load_writer
from narrows.model import gguf
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.record import Record, save
from narrows.spec.units import Bytes

ENDING = ".receipt.json"
POSITIONS = 512


class Wanted(NamedTuple):
    """What is asked for: a file in a type, by a method; `calibrate` and `text` are corpora, to
    round by and to measure with. Without a text it is the end of what is calibrated with. Of each
    sample so many `positions`; without a number POSITIONS, or the context.
    """

    to: Path
    type: Type
    method: Method
    calibrate: str | None = None
    text: str | None = None
    field: str = "text"
    again: bool = False
    checkpoint: str | None = None
    samples: int = 64
    held: int = 16
    positions: int | None = None


class Receipt(Record):
    """What a model was made into, and what that cost. Bytes are of the weights alone; `predicted`
    ones were known before. `quality` has activations in fp32, `quality_here` as the packed decoder
    has them, in 8 bits; None where no text was given, or it does not compute the model.
    """

    model: str
    file: str
    sha256: str
    type: Type
    method: Method
    calibration: str | None = None
    calibration_tokens: int
    rounded: int
    again: int
    kept: int
    parameters: int
    bytes_before: int
    bytes: int
    bytes_predicted: int
    bytes_file: int
    quality: Divergence | None = None
    quality_here: Divergence | None = None
    rate_before: Rate
    rate: Rate
    narrows: str

    @property
    def bits_before(self) -> float:
        """Of a weight of the original."""
        return 8.0 * self.bytes_before / self.parameters

    @property
    def bits(self) -> float:
        """Of a weight."""
        return 8.0 * self.bytes / self.parameters


class _Part(NamedTuple):
    """Rows [B,T] of a text, and which text it is."""

    name: str
    rows_BT: Rows


class _Texts(NamedTuple):
    """What to calibrate with and what to measure by, where there is any."""

    calibration: _Part | None
    held: _Part | None


def shrink(path: Path, wanted: Wanted, *, talk: Talk) -> Receipt:
    """Compress the model at `path` and measure it; raises BadInput and what `compress` raises, in
    time where it can be known before.
    """
    compress.refuse_target(wanted.to, wanted.type)
    if (place := _receipt_of(wanted.to)).exists():
        raise BadInput(f"{place} exists already", hint="remove it, or choose another --out")
    given = source(path, wanted.checkpoint)
    if not given.spec.writes or given.spec.classes:
        raise no_writer(path, given.spec)
    _refuse_large(given)
    set_threads()
    texts = _texts(given, wanted)
    calibrating = None
    if texts.calibration is not None:
        calibrating = torch.from_numpy(texts.calibration.rows_BT)
        talk(f"calibrating with {calibrating.numel():,} tokens of {texts.calibration.name}")
    rounding = Rounding(wanted.type, wanted.method, calibrating)
    done = compress.compress(given, wanted.to, rounding, again=wanted.again, talk=talk)
    quality, here = _quality(path, wanted, texts.held, talk)
    before, after = rates([(path, wanted.checkpoint), (wanted.to, None)], _prompt(given))
    found = Receipt(
        model=given.what, file=wanted.to.name, sha256=_digest(wanted.to), type=wanted.type,
        method=wanted.method, calibration=texts.calibration and texts.calibration.name,
        calibration_tokens=0 if calibrating is None else calibrating.numel(),
        rounded=done.rounded, again=done.again, kept=done.kept, parameters=given.spec.parameters,
        bytes_before=_bytes_before(given), bytes=_bytes_of(wanted.to),
        bytes_predicted=bytes_of(given.spec, wanted.type), bytes_file=done.exported.bytes,
        quality=quality, quality_here=here, rate_before=before, rate=after, narrows=__version__,
    )  # fmt: skip
    save(found, place)
    return found


def _texts(given: Source, wanted: Wanted) -> _Texts:
    """What to calibrate with, and what to measure with; either None where there is none."""
    if given.words is None:
        raise BadInput(f"{given.what} has no tokenizer, which a GGUF file needs",
                       hint="give a model with its tokenizer")  # fmt: skip
    tokenizer, calibrating = given.words.tokenizer, not isinstance(wanted.method, Round)
    if calibrating and wanted.calibrate is None:
        what = "this method rounds by what a text makes of the model, and none is given"
        raise BadInput(what, hint="--calibrate shakespeare, or a file of your own")
    rest, held = None, None
    if wanted.calibrate is not None:
        rest = windows.stretch(wanted.calibrate, tokenizer, field=wanted.field)
    if wanted.text is not None:
        held = windows.stretch(wanted.text, tokenizer, field=wanted.field)
    elif rest is not None:
        rest, held = rest.cut(HELD_SHARE)

    positions = _positions(given, wanted)

    def part(of: Stretch | None, count: int) -> _Part | None:
        return of and _Part(of.name, of.rows(count, positions))

    return _Texts(part(rest if calibrating else None, wanted.samples), part(held, wanted.held))


def _positions(given: Source, wanted: Wanted) -> int:
    """Of each sample."""
    context = given.spec.context
    if wanted.positions is not None and wanted.positions > context:
        raise BadInput(f"{given.what} reads {context} positions, and {wanted.positions} are asked",
                       hint=f"--positions {context}")  # fmt: skip
    return wanted.positions or min(POSITIONS, context)


def _quality(
    path: Path, wanted: Wanted, held: _Part | None, talk: Talk
) -> tuple[Divergence | None, Divergence | None]:
    """With activations in fp32, and as the packed decoder has them."""
    if held is None:
        talk("no text was given: what is lost is not measured (--text CORPUS)")
        return None, None
    name, rows_BT = held
    before = by_torch(load(path, checkpoint=wanted.checkpoint, precision="fp32").model)
    afters = [by_torch(load(wanted.to, precision="fp32").model)]
    writer = load_writer(wanted.to)
    if isinstance(writer, PackedWriter):
        afters.append(by_packed(writer, rows_BT.shape[1]))
    quality, *here = divergences(before, afters, rows_BT, name, talk)
    return quality, here[0] if here else None


def _prompt(given: Source) -> list[int]:
    """Any tokens: what they are does not matter to their rate."""
    count = min(32, max(1, given.spec.context // 2))
    return [(3 + 7 * place) % given.spec.vocabulary for place in range(count)]


def _bytes_before(given: Source) -> int:
    """Of the weights as they came."""
    packed = given.reader and given.reader.packed_bytes()
    value = torch.float32 if given.dtype is None else given.dtype
    return packed or value.itemsize * given.spec.parameters


def _bytes_of(file: Path) -> int:
    return sum(each.size for each in gguf.opened(file).tensors.values())


def _refuse_large(given: Source) -> None:
    needed, free = Bytes(8.0 * given.spec.parameters), memory_free().value
    if needed > free:
        raise DoesNotFit(
            f"measuring what is lost takes both models in fp32, {needed.text()}, and "
            f"{free.text()} are free",
            hint="narrows export MODEL --to FILE.gguf --type q4_0 rounds without measuring",
        )


def _receipt_of(file: Path) -> Path:
    return file.with_name(file.name + ENDING)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
