"""Published models by name: their shapes as files beside this one, each with its source."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from narrows.spec.errors import BadInput, nearest
from narrows.spec.model import ModelSpec
from narrows.spec.record import Record, from_builtins, read

_FOLDER = Path(__file__).with_suffix("")
_BESIDE = ("aliases", "published_parameters", "tolerance", "source")
_ROUNDED = re.compile(r"(?P<digits>\d+)(?:\.(?P<places>\d+))?(?P<unit>[MB])")
_UNITS = {"M": 10**6, "B": 10**9}


class Preset(Record):
    """A published model: its shape, other names, and the parameters that its makers count.

    `tolerance` is the relative error of a rounded count, and 0 where `parameters` is exact.
    """

    spec: ModelSpec
    aliases: tuple[str, ...] = ()
    parameters: int
    tolerance: float = 0.0
    source: str


@cache
def presets() -> dict[str, Preset]:
    """Every published model by its name."""
    return {name: preset for path in sorted(_FOLDER.glob("*.toml")) for name, preset in _load(path)}


def preset(name: str) -> Preset:
    """The model of that name or alias; raises BadInput with the nearest known names.

    Case, an organisation before a slash and the separators `-_. /` do not count, but where a
    separator stands between two digits: "meta-llama/Llama_3.1 8B" is "llama-3.1-8b".
    """
    names = _names()
    for wanted in (plain(name.rpartition("/")[2]), plain(name)):
        if key := names.get(wanted):
            return presets()[key]
    hint = _hint(plain(name.rpartition("/")[2]), names)
    raise BadInput(f'no model "{name}" among the presets', hint=hint)


def plain(name: str) -> str:
    """A name in lower case without separators; those between digits all become a dot."""
    lower = re.sub(r"(?<=\d)[-_. /:]+(?=\d)", "\0", name.strip().lower())
    return re.sub(r"[-_. /:]", "", lower).replace("\0", ".")


@cache
def _names() -> dict[str, str]:
    """The key of every name and alias, made plain."""
    return {
        plain(each): key
        for key, preset in presets().items()
        for each in (key, *preset.aliases)
    }  # fmt: skip


def _hint(wanted: str, names: dict[str, str]) -> str:
    left, near = dict(names), list[str]()
    while len(near) < 3 and (guess := nearest(wanted, left)):
        near.append(names[guess])
        left = {each: key for each, key in left.items() if key not in near}
    if not near:
        return f"use one of: {', '.join(presets())}"
    return f"did you mean {' or '.join(near)}?"


def _load(path: Path) -> list[tuple[str, Preset]]:
    """The models of a family's file; what its table `shared` says holds for each."""
    tables: dict[str, dict[str, Any]] = read(path)
    shared = tables.pop("shared", {})
    return [
        (name, _preset({**shared, **table}, source=f"{path.name} [{name}]"))
        for name, table in tables.items()
    ]


def _preset(table: dict[str, Any], *, source: str) -> Preset:
    shape = {key: value for key, value in table.items() if key not in _BESIDE}
    parameters, tolerance = _count(table["published_parameters"])
    return Preset(
        spec=from_builtins(ModelSpec, shape, source=source),
        aliases=tuple(table.get("aliases", ())),
        parameters=parameters,
        tolerance=table.get("tolerance", tolerance),
        source=table["source"],
    )


def _count(published: int | str) -> tuple[int, float]:
    """A count and its relative error: half a unit of the last digit printed, of "1.32B"."""
    if isinstance(published, int):
        return published, 0.0
    match = _ROUNDED.fullmatch(published)
    assert match is not None, published
    places = match["places"] or ""
    digits, unit = int(match["digits"] + places), _UNITS[match["unit"]] // 10 ** len(places)
    return digits * unit, 0.5 / digits
