from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.hardware import child, find, link, probe
from narrows.hardware.measurement import Request
from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.machine import CollectivePoint, Fact, Link, Machine
from narrows.spec.units import Bytes, BytesPerSecond, Seconds

HERE = {"WORLD_SIZE": "4", "RANK": "0"}
OPERATIONS = ("all_reduce", "send")


def linked(ranks: int, hosts: int = 1, seconds: float = 2e-4) -> Link:
    """100 Mbit/s after `seconds`."""
    points = tuple(
        CollectivePoint(
            operation=operation, ranks=ranks, message=Bytes(message),
            seconds=seconds + message / 12.5e6,
        )
        for operation in OPERATIONS
        for message in (1 << 10, 1 << 14, 1 << 18, 1 << 22)
    )  # fmt: skip
    return Link(
        name=f"{ranks} processes", backend="gloo", ranks=ranks, hosts=hosts, points=points,
        bandwidth=Fact(value=BytesPerSecond(12.5e6), basis="fitted", source="a test"),
        latency=Fact(value=Seconds(seconds), basis="fitted", source="a test"),
        together=Fact(value=1.9, basis="measured", source="a test"),
    )  # fmt: skip


@pytest.fixture
def kept(home: Path, machine: Machine) -> Machine:
    """A record of this hardware, with a link of two ranks here and of four on four hosts."""
    here = msgspec.structs.replace(
        machine, fingerprint=find.fingerprint(), links=(linked(2), linked(4, 4))
    )
    record.save(here, probe.path())
    return here


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What the measuring process was asked; it answers with a link of four ranks, quicker."""
    requests: list[Request] = []

    def run(what: str, request: Request, *given: Any, **options: Any) -> Link:
        assert what == "link"
        requests.append(request)
        return linked(4, 1 if request.processes else 4, 1e-4)

    monkeypatch.setattr(child, "run", run)
    return requests


def places(machine: Machine | None) -> dict[tuple[int, int], float]:
    assert machine is not None
    return {(each.ranks, each.hosts): each.latency.value for each in machine.links}


def test_local_processes_are_started_and_kept(kept: Machine, asked: list[Request]) -> None:
    link.probe_link(4, talk=lambda line: None, environment={})
    assert [request.processes for request in asked] == [4]
    assert asked[0].threads == (kept.device.threads,)
    assert places(probe.machine_known()) == {(2, 1): 2e-4, (4, 1): 1e-4, (4, 4): 2e-4}


def test_a_link_of_as_many_hosts_is_replaced(kept: Machine, asked: list[Request]) -> None:
    link.probe_link(None, talk=lambda line: None, environment=HERE)
    assert [request.processes for request in asked] == [None]
    assert places(probe.machine_known()) == {(2, 1): 2e-4, (4, 4): 1e-4}


def test_only_the_first_process_writes(kept: Machine, asked: list[Request]) -> None:
    link.probe_link(None, talk=lambda line: None, environment={**HERE, "RANK": "3"})
    assert places(probe.machine_known()) == {(2, 1): 2e-4, (4, 4): 2e-4}


def test_a_lone_process_has_no_link(home: Path) -> None:
    for processes in (None, 1, 0, -2):
        with pytest.raises(BadInput, match="at least two") as caught:
            link.probe_link(processes, talk=lambda line: None, environment={})
        assert "--processes 2" in (caught.value.hint or "")


def test_a_crowd_is_refused(home: Path) -> None:
    with pytest.raises(BadInput, match="5000 processes on") as caught:
        link.probe_link(5000, talk=lambda line: None, environment={})
    assert "at most" in (caught.value.hint or "")


def test_processes_started_already_are_not_counted_otherwise(home: Path) -> None:
    with pytest.raises(BadInput, match="4 processes are started already, not 3"):
        link.probe_link(3, talk=lambda line: None, environment=HERE)
    with pytest.raises(BadInput, match='WORLD_SIZE is "many"'):
        link.probe_link(None, talk=lambda line: None, environment={"WORLD_SIZE": "many"})


def test_each_collective_is_fitted_and_shown() -> None:
    found = link.fits(linked(4))
    assert [each.operation for each in found] == list(OPERATIONS)
    for each in found:
        assert each.latency == pytest.approx(2e-4, rel=0.02)
        assert each.bandwidth == pytest.approx(12.5e6, rel=0.02)
        assert each.error < 0.01 and (each.least, each.most) == (1 << 10, 1 << 22)
    said = link.text(linked(4))
    assert "all_reduce" in said and "100 Mbit/s" in said and "200 µs" in said
    assert "1.9 x as fast" in said
