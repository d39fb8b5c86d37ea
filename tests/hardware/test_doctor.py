from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.hardware import find, fit
from narrows.hardware.doctor import diagnose
from narrows.hardware.finding import Finding
from narrows.hardware.measurement import SPOT_SHAPE, Spot
from narrows.spec.machine import Fact, Machine
from tests.homes import new_home

from .conftest import Tree

Examined = Mapping[str, Finding]


def _diagnose(machine: Machine, root: Path, **options: Any) -> list[Finding]:
    here = msgspec.structs.replace(machine, fingerprint=find.fingerprint(root))
    given: dict[str, Any] = {"environment": {}, "spot": lambda known: None, **options}
    return list(diagnose(here, root=root, **given))


def _found(findings: list[Finding], part: str) -> Finding:
    matching = [finding for finding in findings if part in finding.what]
    assert len(matching) == 1, [finding.what for finding in findings]
    return matching[0]


def _rate(machine: Machine, precision: str) -> float:
    curve = next(curve for curve in machine.device.matmul if curve.precision == precision)
    m, n, k = SPOT_SHAPE
    return 2 * m * n * k / fit.seconds(curve, m, n, k)


def test_a_healthy_machine_has_nothing_bad(machine: Machine, epyc: Path) -> None:
    findings = _diagnose(machine, epyc)
    assert {finding.level for finding in findings} == {"ok"}
    assert len(findings) >= 8


def test_here_every_finding_that_is_not_ok_says_why_and_what_to_do(machine: Machine) -> None:
    findings = diagnose(machine, spot=lambda known: None)
    assert findings[0].level == "bad"
    for finding in findings:
        assert finding.level == "ok" or (finding.why and finding.fix), finding


def test_the_worst_comes_first(machine: Machine, epyc: Path) -> None:
    findings = _diagnose(machine, epyc, environment={"OMP_NUM_THREADS": "1"})
    assert findings[0].level == "bad" and findings[-1].level == "ok"


def test_a_record_of_other_hardware(machine: Machine, epyc: Path) -> None:
    finding = diagnose(machine, root=epyc, environment={}, spot=lambda known: None)[0]
    assert finding.level == "bad" and "other hardware" in finding.what
    assert finding.fix == "narrows probe --refresh"


def test_a_record_taken_on_a_busy_machine(machine: Machine, epyc: Path) -> None:
    load = Fact(value=1.4, basis="measured", source="cores; 20% of the timings settled")
    busy = msgspec.structs.replace(machine, other_load=load)
    assert _found(_diagnose(busy, epyc), "1.4 cores busy").level == "warn"


@pytest.mark.parametrize(
    ("share", "load", "level", "why"),
    [(1.0, 0.0, "ok", ""), (0.4, 0.0, "bad", "throttled"), (0.4, 1.5, "warn", "1.5 cores")],
)
def test_throttling_is_told_from_other_work(
    machine: Machine, epyc: Path, share: float, load: float, level: str, why: str
) -> None:
    now = Spot(
        fp32=share * _rate(machine, "fp32"), bf16=share * _rate(machine, "bf16"), other_load=load
    )
    finding = _found(_diagnose(machine, epyc, spot=lambda known: now), "bf16 products")
    assert finding.level == level and why in finding.why


def test_the_product_is_really_timed(
    machine: Machine, epyc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(new_home(tmp_path / "home")))
    here = msgspec.structs.replace(machine, fingerprint=find.fingerprint(epyc))
    findings = diagnose(here, root=epyc, environment={})
    assert "now" in _found(list(findings), "fp32 products").what


def test_memory_of_a_container_and_of_the_machine(machine: Machine, epyc: Path, tree: Tree) -> None:
    tree(
        {
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/memory.max": "4000000000\n",
            "sys/fs/cgroup/memory.current": "3900000000\n",
        }
    )
    findings = _diagnose(machine, epyc)
    assert _found(findings, "container may use 4 GB").level == "warn"
    assert _found(findings, "100 MB of 4 GB are free").level == "warn"
