from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import narrows
from narrows.spec.tables import Tables

ROOM = Path(narrows.__file__).parent
# Those that are read so.
CATALOGUES = (
    *sorted((ROOM / "model/presets").glob("*.toml")),
    *sorted((ROOM / "hardware/catalogue/accelerators").glob("*.toml")),
    ROOM / "hardware/catalogue/reach.toml",
)


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: str(path.name))
def test_a_catalogue_by_its_tables_is_the_catalogue(path: Path) -> None:
    assert dict(Tables.of(path)) == tomllib.loads(path.read_text(encoding="utf-8"))


def test_a_table_is_parsed_where_it_is_asked_for() -> None:
    tables = Tables('[one]\na = 1\n[one.within]\nb = 2\n["t.wo"]\nc = [\n  3,\n]\n[wrong]\nd = \n')
    assert list(tables) == ["one", "t.wo", "wrong"] and len(tables) == 3
    assert "wrong" in tables and "three" not in tables
    assert tables["one"] == {"a": 1, "within": {"b": 2}} and tables["t.wo"] == {"c": [3]}
    with pytest.raises(tomllib.TOMLDecodeError):
        tables["wrong"]
