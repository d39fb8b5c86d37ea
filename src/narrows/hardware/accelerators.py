"""Accelerators that one need not have: their makers' figures, by name, from the catalogue."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from narrows.spec.errors import BadInput, suggestion
from narrows.spec.record import Record, from_builtins
from narrows.spec.tables import Tables
from narrows.spec.units import Bytes, BytesPerSecond, DollarsPerHour, FlopPerSecond, Watts

_CATALOGUE = Path(__file__).with_name("catalogue") / "accelerators"
# Words that people put before a name or leave out.
_MAKERS = frozenset(
    ("nvidia", "geforce", "tesla", "amd", "instinct", "radeon", "intel", "google", "cloud", "apple")
)
_SOURCES = "sources"
Kind = Literal["cuda", "rocm", "xpu", "tpu", "hpu", "mps", "neuron", "cpu", "fpga"]


class Peak(Record):
    """Dense operations a second by the operands' format; None where the hardware lacks it."""

    fp32: FlopPerSecond | None = None
    tf32: FlopPerSecond | None = None
    fp16: FlopPerSecond | None = None
    bf16: FlopPerSecond | None = None
    fp8: FlopPerSecond | None = None
    fp6: FlopPerSecond | None = None
    fp4: FlopPerSecond | None = None
    int8: FlopPerSecond | None = None
    int4: FlopPerSecond | None = None


class Interconnect(Record):
    """What joins `devices` directly; bandwidth of one device, one direction, over all its links."""

    name: str
    devices: int
    bandwidth: BytesPerSecond


class Network(Record):
    """The usual network beyond that domain; bandwidth of one device, one direction."""

    name: str
    bandwidth: BytesPerSecond


class Price(Record):
    """What renting one device for an hour cost on demand, and when."""

    value: DollarsPerHour
    date: str
    source: str


class Accelerator(Record):
    """One device as published: `units` are its SMs, CUs, cores or matrix units.

    `on_chip` is the last-level cache or scratch memory, `host_link` one direction, `host_memory` a
    usual node's, `power_full` the design or board power. `source` is of every fact that `source_of`
    does not name.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kind: Kind
    architecture: str
    released: int
    units: int | None = None
    memory_capacity: Bytes
    memory_bandwidth: BytesPerSecond
    on_chip: Bytes | None = None
    devices_per_node: int
    power_idle: Watts | None = None
    power_full: Watts | None = None
    host_link: BytesPerSecond | None = None
    host_memory: Bytes | None = None
    peak: Peak
    link: Interconnect | None = None
    network: Network | None = None
    price: Price | None = None
    source: str
    source_of: dict[str, str] = {}


@cache
def accelerators() -> dict[str, Accelerator]:
    """Every accelerator of the catalogue by its key, with its sources spelt out."""
    return {key: _one(key) for key in _makers()}


def accelerator(name: str) -> Accelerator:
    """The accelerator of that key, name or alias; raises BadInput with the nearest known names.

    Case, punctuation and the maker's name do not count: "NVIDIA H100-SXM" is "h100_sxm".
    """
    if key := {plain(each): each for each in _makers()}.get(plain(name)):
        return _one(key)
    keys = _keys()
    if key := keys.get(plain(name)):
        return _one(key)
    raise BadInput(f'no accelerator "{name}" in the catalogue', hint=suggestion(plain(name), keys))


def plain(name: str) -> str:
    """A name's letters and digits in lower case, without the words that makers put before it."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in _MAKERS)


def spellings(key: str, accelerator: Accelerator) -> set[str]:
    """What a name may be, made plain, to mean this accelerator."""
    return {plain(each) for each in (key, accelerator.name, *accelerator.aliases)}


@cache
def _keys() -> dict[str, str]:
    return {
        spelling: key
        for key, accelerator in accelerators().items()
        for spelling in spellings(key, accelerator)
    }


@cache
def _makers() -> dict[str, tuple[str, Tables]]:
    """Each accelerator's file, by name and by what it holds."""
    files = {path.name: Tables.of(path) for path in sorted(_CATALOGUE.glob("*.toml"))}
    return {
        key: (file, tables) for file, tables in files.items() for key in tables
        if key != _SOURCES
    }  # fmt: skip


@cache
def _one(key: str) -> Accelerator:
    file, tables = _makers()[key]
    table = _sourced(tables[key], _sources(file))
    return from_builtins(Accelerator, table, source=f"{file} [{key}]")


@cache
def _sources(file: str) -> dict[str, str]:
    return next(tables for name, tables in _makers().values() if name == file)[_SOURCES]


def _sourced(table: dict[str, Any], sources: dict[str, str]) -> dict[str, Any]:
    sourced = {
        **table,
        "source": sources[table["source"]],
        "source_of": {fact: sources[key] for fact, key in table.get("source_of", {}).items()},
    }
    if price := table.get("price"):
        sourced["price"] = {**price, "source": sources[price["source"]]}
    return sourced
