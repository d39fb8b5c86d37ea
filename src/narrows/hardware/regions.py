"""Where a machine stands: how much carbon a kilowatt-hour of that region's electricity emits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from narrows.spec.errors import BadInput, suggestion
from narrows.spec.fleet import Fleet
from narrows.spec.machine import Fact
from narrows.spec.record import Record, load
from narrows.spec.units import GramsPerKilowattHour

_CATALOGUE = Path(__file__).with_name("catalogue")


class Region(Record):
    """A year's average; `place` says what of the country it is, where it is not all of it."""

    carbon: GramsPerKilowattHour
    source: str
    place: str | None = None
    aliases: tuple[str, ...] = ()


class Regions(Record):
    """All regions by name; a region's `source` is a key of `sources`."""

    sources: dict[str, str]
    regions: dict[str, Region]


@cache
def regions() -> Regions:
    """The regions of the catalogue."""
    return load(Regions, _CATALOGUE / "regions.toml")


def carbon(name: str) -> Fact[GramsPerKilowattHour]:
    """Of the region of that name or alias; raises BadInput with the nearest names it knows."""
    known = regions()
    wanted = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    keys = {
        spelling: key
        for key, region in known.regions.items()
        for spelling in (key, *region.aliases)
    }
    if wanted not in keys:
        raise BadInput(f'no region "{name}" in the catalogue', hint=suggestion(wanted, keys))
    region = known.regions[keys[wanted]]
    source = known.sources[region.source]
    return Fact(
        value=region.carbon, basis="estimated",
        source=f"{keys[wanted]}: {source}" + (f", {region.place}" if region.place else ""),
    )  # fmt: skip


def placed(fleet: Fleet, region: str | None, overhead: float | None) -> Fleet:
    """The fleet in that region, in a building that draws `overhead` times what machines do (PUE).

    Raises BadInput where the region is not known or the building draws less than its machines.
    """
    if region is not None:
        fleet = msgspec.structs.replace(fleet, carbon=carbon(region))
    if overhead is None:
        return fleet
    if not 1.0 <= overhead <= 10.0:
        raise BadInput(
            f"a power usage effectiveness of {overhead:g} cannot be",
            hint="what the building draws over what its machines do, such as --pue 1.1",
        )
    return msgspec.structs.replace(
        fleet, overhead=Fact(value=overhead, basis="assumed", source="as given")
    )
