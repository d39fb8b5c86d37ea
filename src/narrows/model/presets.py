"""Published models by name: their shapes as files beside this one, each with its source."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from narrows.spec.errors import BadInput, nearest
from narrows.spec.model import ModelSpec
from narrows.spec.record import Record, from_builtins
from narrows.spec.tables import Tables

_FOLDER = Path(__file__).with_suffix("")
_SHARED = "shared"
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
    return {name: _one(name) for name in _families()}


def preset(name: str) -> Preset:
    """The model of that name or alias; raises BadInput with the nearest known names.

    Case, an organisation before a slash and the separators `-_. /` do not count, but where a
    separator stands between two digits: "meta-llama/Llama_3.1 8B" is "llama-3.1-8b".
    """
    if key := _keys().get(plain(name.rpartition("/")[2])):
        return _one(key)
    names = _names()
    for wanted in (plain(name.rpartition("/")[2]), plain(name)):
        if key := names.get(wanted):
            return _one(key)
    hint = _hint(plain(name.rpartition("/")[2]), names)
    raise BadInput(f'no model "{name}" among the presets', hint=hint)


def plain(name: str) -> str:
    """A name in lower case without separators; those between digits all become a dot."""
    lower = re.sub(r"(?<=\d)[-_. /:]+(?=\d)", "\0", name.strip().lower())
    return re.sub(r"[-_. /:]", "", lower).replace("\0", ".")


@cache
def _families() -> dict[str, tuple[str, Tables]]:
    """Each model's file, by name and by what it holds."""
    files = {path.name: Tables.of(path) for path in sorted(_FOLDER.glob("*.toml"))}
    return {
        name: (file, tables) for file, tables in files.items() for name in tables
        if name != _SHARED
    }  # fmt: skip


@cache
def _keys() -> dict[str, str]:
    """Every name, made plain; aliases are in the tables."""
    return {plain(name): name for name in _families()}


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


@cache
def _one(name: str) -> Preset:
    """A model; what the table `shared` of its file says holds for each there."""
    file, tables = _families()[name]
    shared = tables.get(_SHARED, {})
    return _preset({**shared, **tables[name]}, source=f"{file} [{name}]")


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
