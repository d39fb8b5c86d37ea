from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import narrows
from narrows.hardware import child, find, probe
from narrows.hardware.measurement import Measurement
from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.machine import Compiler, Fact, Machine
from narrows.spec.units import GramsPerKilowattHour

SOURCE = str(Path(narrows.__file__).parents[1])


@pytest.fixture
def measured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The measuring process, replaced by its recorded answers; which it was asked for."""
    asked: list[str] = []

    def run(what: str, *arguments: object, **options: object) -> Any:
        asked.append(what)
        if what == "compiler":
            return machine.compiler
        return Measurement(
            device=machine.device, devices=1, disk=machine.disk, kernel_sets=("torch", "native"),
            links=machine.links, other_load=0.9, settled=0.6,
        )  # fmt: skip

    monkeypatch.setattr(child, "run", run)
    return asked


def _keep(machine: Machine, **changes: Any) -> None:
    record.save(msgspec.structs.replace(machine, **changes), probe.path())


def test_it_measures_once(home: Path, measured: list[str]) -> None:
    said: list[str] = []
    first = probe.probe(talk=said.append)
    assert measured == ["everything", "compiler"]
    assert "once" in said[0] and "kept in" in said[-1]
    assert any("other work kept 0.9 cores busy; 40%" in line for line in said)
    assert probe.probe(talk=said.append) == first == probe.machine_known()
    assert measured == ["everything", "compiler"]
    assert first.fingerprint == find.fingerprint()
    assert first.processor == find.processor()


def test_a_refresh_measures_again_and_keeps_what_somebody_wrote(
    home: Path, measured: list[str], machine: Machine
) -> None:
    clean = Fact(value=GramsPerKilowattHour(20.0), basis="datasheet", source="hydro power")
    electricity = msgspec.structs.replace(machine.electricity, carbon=clean)
    _keep(machine, fingerprint=find.fingerprint(), electricity=electricity)
    again = probe.probe(talk=lambda line: None, refresh=True)
    assert measured == ["everything", "compiler"]
    assert again.electricity.carbon == clean
    assert again.probed_at != machine.probed_at


def test_a_refresh_keeps_links_that_it_does_not_measure(
    home: Path, measured: list[str], machine: Machine
) -> None:
    far, old = (
        msgspec.structs.replace(machine.links[0], ranks=ranks, hosts=ranks // 2, name="old")
        for ranks in (4, 2)
    )
    _keep(machine, fingerprint=find.fingerprint(), links=(old, far))
    again = probe.probe(talk=lambda line: None, refresh=True)
    assert again.links == (*machine.links, far)


def test_a_refresh_says_what_fell(home: Path, measured: list[str], machine: Machine) -> None:
    faster = [
        msgspec.structs.replace(
            curve,
            peak=msgspec.structs.replace(curve.peak, value=type(curve.peak.value)(9e12)),
        )
        for curve in machine.device.matmul
    ]
    device = msgspec.structs.replace(machine.device, matmul=tuple(faster))
    _keep(machine, fingerprint=find.fingerprint(), device=device)
    said: list[str] = []
    probe.probe(talk=said.append, refresh=True)
    assert any("bf16 products now reach" in line and "throttled" in line for line in said)


def test_a_record_from_another_machine_is_noticed(
    home: Path, measured: list[str], machine: Machine
) -> None:
    elsewhere = msgspec.structs.replace(machine.processor, name="Intel Xeon", cores_allowed=96)
    _keep(machine, processor=elsewhere)
    assert probe.machine_known() is None
    said: list[str] = []
    found = probe.probe(talk=said.append)
    assert "other hardware" in said[0]
    assert "Intel Xeon then" in said[0] and "96 then" in said[0]
    assert measured and found.fingerprint == find.fingerprint()
    assert (home / f"machine-{machine.fingerprint}.toml").exists()


def test_a_record_put_aside_is_taken_up_when_its_hardware_returns(
    home: Path, measured: list[str], machine: Machine
) -> None:
    probe.probe(talk=lambda line: None)
    aside = home / f"machine-{find.fingerprint()}.toml"
    probe.path().rename(aside)
    _keep(machine)
    measured.clear()
    said: list[str] = []
    assert probe.probe(talk=said.append).fingerprint == find.fingerprint()
    assert measured == [] and "taking up" in said[0]
    assert not aside.exists()


@pytest.mark.parametrize("content", ["not = [toml", 'name = "x"\nnonsense = 1\n', ""])
def test_a_spoilt_record_is_measured_again(home: Path, measured: list[str], content: str) -> None:
    home.mkdir()
    probe.path().write_text(content)
    assert probe.machine_known() is None
    said: list[str] = []
    probe.probe(talk=said.append)
    assert "cannot be used" in said[0] and measured


def test_no_record_is_nothing_known(home: Path) -> None:
    assert probe.machine_known() is None


def test_a_home_that_cannot_be_is_a_mistake_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="cannot be written") as caught:
        probe.probe(talk=lambda line: None)
    assert "NARROWS_HOME" in (caught.value.hint or "")


def test_without_a_compiler_nothing_is_compiled(
    home: Path, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = probe.probe(talk=lambda line: None)
    assert measured == ["everything"]
    assert found.compiler == Compiler(available=False, reason="no C++ compiler was found")


def test_compiling_that_takes_too_long_is_estimated(
    home: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = child.run

    def run(what: Any, *arguments: Any, **options: Any) -> Any:
        if what == "compiler":
            raise child.TooLong("compiler took more than 20 s")
        return answer(what, *arguments, **options)

    monkeypatch.setattr(child, "run", run)
    cost = probe.probe(talk=lambda line: None).compiler.seconds_per_block
    assert cost and cost.basis == "estimated" and cost.value > 20


def test_with_two_threads_to_a_core_both_counts_are_tried(machine: Machine) -> None:
    shared = msgspec.structs.replace(machine.processor, cores_allowed=8, threads_per_core=2)
    assert probe._thread_counts(shared) == (4, 8)
    assert probe._thread_counts(machine.processor) == (2,)


def test_the_known_machine_is_read_without_torch(home: Path, machine: Machine) -> None:
    _keep(machine, fingerprint=find.fingerprint())
    program = (
        f"import sys; sys.path.insert(0, {SOURCE!r})\n"
        "from narrows.hardware.probe import machine_known\n"
        "assert machine_known() is not None and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_second_probe_waits_for_the_first(home: Path, measured: list[str]) -> None:
    home.mkdir()
    program = (
        "import fcntl, sys, time\n"
        f"file = open({str(home / 'machine.lock')!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(0.7)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert first.stdout and first.stdout.readline()
    started, said = time.monotonic(), list[str]()
    probe.probe(talk=said.append)
    assert time.monotonic() - started > 0.4
    assert said[0].startswith("waiting")
    first.wait()
    first.stdout.close()


@pytest.mark.slow
def test_a_whole_probe_holds_everything(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = probe.probe(talk=print)
    assert {curve.precision for curve in found.device.matmul} == {"fp32", "bf16", "int8"}
    assert all(curve.points for curve in found.device.attention + found.device.kernels)
    assert found.links and found.links[0].points
    assert found.device.threads == find.processor().cores_allowed
    assert probe.machine_known() == found
