"""A model in fewer bits: a GGUF file of 4 or 8, proved to hold just what was chosen.

compress(source, to, rounding) → Compressed

source → matrices in groups → a file, as `export` writes it → read back: equal, value by value
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from narrows.adapt.method import TYPES, Round
from narrows.adapt.quantize import Rounding, quantized, type_of
from narrows.infer.export import GGUF, Exported, export_source
from narrows.infer.loading import Talk
from narrows.infer.source import Source
from narrows.model.blocks import Groups
from narrows.model.grouped import GROUP
from narrows.model.writing import parameters
from narrows.spec.errors import BadInput, nearest


class Compressed(NamedTuple):
    """What was written; how many matrices were rounded, how many of them for the second time, and
    how many were taken as they lay.
    """

    exported: Exported
    rounded: int
    again: int
    kept: int


class _Matrices(NamedTuple):
    """Of a source: those to round, those of them that are packed, and those to take as they lie."""

    rounded: list[str]
    again: list[str]
    kept: dict[str, Groups]


def compress(
    given: Source, to: Path, rounding: Rounding, *, again: bool = False,
    talk: Talk = lambda text: None,
) -> Compressed:  # fmt: skip
    """Write the model rounded so. Matrices that the source has in that type are taken as they
    lie; those packed otherwise are refused, unless to round `again` is asked for.

    Raises BadInput and what `export` raises; nothing is left of a file that is not whole.
    """
    refuse_target(to, rounding.type)
    found = _matrices(given, rounding, again=again)
    if found.again:
        talk(f"rounding again what was packed before: {len(found.again)} matrices")
    done = quantized(given.weights, given.spec, rounding, kept=found.kept, talk=talk)
    source = given._replace(weights=done.weights, groups=done.groups)
    exported = export_source(source, to, type=rounding.type, talk=talk)
    return Compressed(exported, len(found.rounded), len(found.again), len(found.kept))


def refuse_target(to: Path, type: str) -> None:
    """Raises BadInput where the file or the type cannot be; before anything is read."""
    if type not in TYPES:
        guess = nearest(type, TYPES)
        hint = f"did you mean --to {guess}? " if guess else ""
        raise BadInput(f"nothing is packed in {type}", hint=f"{hint}known: {', '.join(TYPES)}")
    if to.suffix != GGUF:
        raise BadInput(f"{to} does not end in .gguf", hint=f"--out {to}.gguf")
    if to.exists():
        raise BadInput(f"{to} exists already", hint=f"remove it, or --out {to.stem}-2{GGUF}")
    if not to.resolve().parent.is_dir():
        raise BadInput(f"{to.resolve().parent} is no folder", hint=f"mkdir -p {to.parent}")


def _matrices(given: Source, rounding: Rounding, *, again: bool) -> _Matrices:
    type = rounding.type
    shapes = parameters(given.spec)
    wanted = {name: own for name, shape in shapes.items() if (own := type_of(name, shape, type))}
    if not wanted:
        what = f"{given.what} has no matrix whose rows are whole groups of {GROUP} values"
        raise BadInput(what, hint="narrows export MODEL --to FILE.gguf --type f16")
    packed = _packed(given, shapes)
    # What a text tells is of all matrices of a block, so that none of them can stay.
    stay = [name for name, own in wanted.items() if packed.get(name) == {own.upper()}
            and (isinstance(rounding.method, Round) or not name.startswith("blocks."))]  # fmt: skip
    twice = [name for name in packed if name not in stay]
    if twice and not again:
        kinds = ", ".join(sorted({kind for name in twice for kind in packed[name]}))
        raise BadInput(
            f"{given.what} is packed already: {len(twice)} matrices in {kinds}, and to round them "
            "again loses more than to round the original",
            hint="take the model in 16 or 32 bits, or do it all the same: --again",
        )
    rounded = [name for name in wanted if name not in stay]
    if not rounded and not twice:
        raise BadInput(f"{given.what} is in {type} already", hint="there is nothing to do")
    assert given.reader is not None or not stay
    lying = {name: given.reader.whole_groups(name, shapes[name]) for name in stay if given.reader}
    kept = {name: each for name, each in lying.items() if each is not None}
    return _Matrices(rounded, twice, kept)


def _packed(given: Source, shapes: Mapping[str, object]) -> dict[str, frozenset[str]]:
    """In which types the source has what it packs."""
    if given.reader is None:
        return {}
    found = {name: given.reader.blocks(name) for name in shapes}
    return {name: kinds for name, kinds in found.items() if kinds}
