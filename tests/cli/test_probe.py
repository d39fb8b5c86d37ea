"""narrows probe --link; the machine itself is probed in test_verbs.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.cli.main import main
from narrows.hardware import child, probe
from narrows.spec import record
from narrows.spec.machine import Fact, Link, Machine

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def measured(place: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Link:
    """What the measuring process answers."""
    link = msgspec.structs.replace(
        machine.links[0], name="4 processes of this machine", ranks=4,
        together=Fact(value=1.02, basis="measured", source="a test"),
    )  # fmt: skip

    def run(what: str, *given: Any, **options: Any) -> Link:
        assert what == "link"
        return link

    monkeypatch.setattr(child, "run", run)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return link


def test_a_link_is_shown_and_kept(capsys: Said, measured: Link, machine: Machine) -> None:
    assert main(["probe", "--link", "--processes", "4"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "4 processes of this machine, gloo"
    for point in ("all_reduce", "all_gather", "reduce_scatter", "broadcast"):
        assert [line for line in lines if line.startswith(point)]
    assert "1.02 x as fast" in lines[-1]
    assert said.err.splitlines()[-1] == "next: narrows plan job.toml --set layout.data=4"
    kept = record.load(Machine, probe.path())
    assert kept.links == (*machine.links, measured)


def test_a_link_as_json(capsys: Said, measured: Link) -> None:
    assert main(["probe", "--link", "--processes", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert record.from_builtins(Link, said["link"]) == measured
    assert [each["operation"] for each in said["fits"]] == [
        "all_reduce", "all_gather", "reduce_scatter", "broadcast",
    ]  # fmt: skip


def test_one_of_several_processes_is_silent(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert main(["probe", "--link"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == ""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--link"], "at least two processes"),
        (["--processes", "2"], "says nothing without --link"),
        (["--link", "--processes", "2", "--refresh"], "measured alone"),
        (["--link", "--processes", "two"], "invalid int"),
    ],
)
def test_what_cannot_be_measured_is_told(capsys: Said, given: list[str], told: str) -> None:
    assert main(["probe", *given]) == 2
    assert told in capsys.readouterr().err
