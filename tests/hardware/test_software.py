from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from narrows.hardware import find, software
from narrows.hardware.finding import Finding, Patient
from narrows.spec.machine import Compiler, Machine

from .conftest import Tree

NVIDIA = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: NVIDIA L4\n"}


def _patient(machine: Machine, root: Path, environment: Mapping[str, str] | None = None) -> Patient:
    return Patient(machine, find.processor(root), environment or {}, root)


def _one(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_processor_without_a_bf16_unit(machine: Machine, epyc: Path, tree: Tree) -> None:
    assert _one([*software.bf16(_patient(machine, epyc))]).level == "ok"
    tree({"proc/cpuinfo": "model name\t: Intel Core i5\nflags\t: avx2 fma\n"})
    finding = _one([*software.bf16(_patient(machine, epyc))])
    assert finding.level == "warn" and "FLOP/s in fp32" in finding.why


def test_the_versions_of_torch_are_those_the_package_asks_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (major, minor), (below_major, below_minor) = software.TORCH_VERSIONS
    assert f"torch>={major}.{minor},<{below_major}.{below_minor}" in project["dependencies"]


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("2.13.0+cpu", "ok"),
        ("2.13.1", "ok"),
        ("2.4.0", "bad"),
        ("2.14.0a0", "bad"),
        ("none", "bad"),
    ],
)
def test_torch_out_of_range(
    machine: Machine, epyc: Path, monkeypatch: pytest.MonkeyPatch, version: str, level: str
) -> None:
    monkeypatch.setattr(find, "torch_version", lambda: version)
    finding = _one([*software.torch_version(_patient(machine, epyc))])
    assert finding.level == level
    assert level == "ok" or 'pip install "torch>=' in finding.fix


def test_a_device_that_torch_cannot_use(machine: Machine, epyc: Path, tree: Tree) -> None:
    assert [*software.accelerator(_patient(machine, epyc))] == []
    tree(NVIDIA)
    finding = _one([*software.accelerator(_patient(machine, epyc))])
    assert finding.level == "bad" and "NVIDIA L4" in finding.what
    used = msgspec.structs.replace(
        machine, device=msgspec.structs.replace(machine.device, kind="cuda")
    )
    assert [*software.accelerator(_patient(used, epyc))] == []


def test_a_device_hidden_by_the_environment(machine: Machine, epyc: Path, tree: Tree) -> None:
    tree(NVIDIA)
    hidden = _patient(machine, epyc, {"CUDA_VISIBLE_DEVICES": ""})
    finding = _one([*software.accelerator(hidden)])
    assert finding.level == "warn" and "CUDA_VISIBLE_DEVICES" in finding.fix


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("ID=debian\n", "sudo apt-get install -y g++"),
        ('ID=ubuntu\nID_LIKE="debian"\n', "sudo apt-get install -y g++"),
        ("ID=fedora\n", "sudo dnf install -y gcc-c++"),
        ("ID=arch\n", "sudo pacman -S gcc"),
        ("ID=alpine\n", "sudo apk add g++"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "sudo zypper install gcc-c++"),
    ],
)
def test_no_compiler(
    machine: Machine, epyc: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch,
    system: str, command: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    tree({"etc/os-release": system})
    finding = _one([*software.compiler(_patient(machine, epyc))])
    assert (finding.level, finding.fix) == ("bad", command)


def test_a_compiler_that_failed(machine: Machine, epyc: Path) -> None:
    failed = Compiler(available=False, reason="CppCompileError: no -lgomp")
    poor = msgspec.structs.replace(machine, compiler=failed)
    finding = _one([*software.compiler(_patient(poor, epyc))])
    assert finding.level == "warn" and "-lgomp" in finding.why


def test_missing_native_kernels_have_a_reason(machine: Machine, epyc: Path, tree: Tree) -> None:
    assert _one([*software.kernels(_patient(machine, epyc))]).level == "ok"
    without = msgspec.structs.replace(machine, kernel_sets=("torch",))
    assert "refresh" in _one([*software.kernels(_patient(without, epyc))]).fix
    tree({"proc/cpuinfo": "model name\t: Intel Core i5\nflags\t: avx2 fma\n"})
    assert "lacks" in _one([*software.kernels(_patient(without, epyc))]).why
    tree({"proc/cpuinfo": "model name\t: AMD EPYC\nflags\t: avx2 fma f16c\n"})
    assert "refresh" in _one([*software.kernels(_patient(without, epyc))]).fix
