"""What the software can make of the hardware: bf16, torch, accelerators, compilers, kernels."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from narrows.hardware import find, places
from narrows.hardware.finding import Finding, Patient
from narrows.kernels.build import AVX2

TORCH_VERSIONS = ((2, 13), (2, 14))
"""Tested with these: from the first, below the second, as pyproject.toml asks."""


def bf16(patient: Patient) -> Iterator[Finding]:
    """Whether bf16 is multiplied in hardware."""
    if patient.machine.device.kind != "cpu":
        return
    peak = {curve.precision: curve.peak.value for curve in patient.machine.device.matmul}
    if find.has_bf16_unit(patient.processor):
        yield Finding(level="ok", what="the processor multiplies bf16 in hardware")
    else:
        measured = ""
        if "bf16" in peak and "fp32" in peak:
            measured = f": here {peak['bf16'].text()} against {peak['fp32'].text()} in fp32"
        yield Finding(
            level="warn",
            what="the processor has no bf16 unit (AVX512_BF16, AMX or Arm's bf16)",
            why=f"bf16 is then converted for each product{measured}",
            fix="leave the precision to the plan, which compares both; or --set "
            "layout.precision=fp32. A processor with the unit is 2-10 x as fast",
        )


def torch_version(patient: Patient) -> Iterator[Finding]:
    """Whether torch is one that was tested."""
    version = find.torch_version()
    (first, below), parts = TORCH_VERSIONS, version.split(".")[:2]
    number = tuple(int(part) for part in parts if part.isdigit())
    wanted = f"torch>={first[0]}.{first[1]},<{below[0]}.{below[1]}"
    if first <= number < below:
        yield Finding(level="ok", what=f"torch {version}")
    else:
        yield Finding(
            level="bad",
            what=f"torch {version} is installed, {wanted} is needed",
            why="other versions were not tested and lack operations that are used",
            fix=f'pip install "{wanted}"',
        )


def accelerator(patient: Patient) -> Iterator[Finding]:
    """A device whose driver is there, but not for torch."""
    present = find.accelerators(patient.root)
    hidden = patient.environment.get("CUDA_VISIBLE_DEVICES")
    if not present or patient.machine.device.kind != "cpu":
        return
    if hidden is not None and hidden.strip() in ("", "-1"):
        yield Finding(
            level="warn",
            what=f"{present[0]} is hidden by CUDA_VISIBLE_DEVICES={hidden!r}",
            why="torch sees no device and the processor does the work",
            fix="unset CUDA_VISIBLE_DEVICES && narrows probe",
        )
        return
    yield Finding(
        level="bad",
        what=f"{present[0]} has its driver loaded, but torch {find.torch_version()} cannot use it",
        why="torch's build is for another device, or for none",
        fix="install the build of torch that pytorch.org/get-started names for this device, "
        "then: narrows probe --refresh",
    )


def compiler(patient: Patient) -> Iterator[Finding]:
    """What native kernels and torch.compile need."""
    path = find.compiler_path()
    install = _installer(patient.root)
    if path is None:
        yield Finding(
            level="bad",
            what="no C++ compiler was found (CXX, g++, clang++ or c++)",
            why="without one there are no native kernels and no torch.compile",
            fix=install("g++"),
        )
    elif not Path(sysconfig.get_path("include"), "Python.h").exists():
        yield Finding(
            level="warn",
            what="Python's headers (Python.h) are not installed",
            why="torch.compile needs them for what it generates",
            fix=install("python3-dev"),
        )
    elif not patient.machine.compiler.available:
        yield Finding(
            level="warn",
            what="torch.compile does not work here",
            why=patient.machine.compiler.reason,
            fix="mend what it names, then: narrows probe --refresh",
        )
    else:
        yield Finding(level="ok", what=f"C++ compiler {path}, torch.compile works")


def kernels(patient: Patient) -> Iterator[Finding]:
    """Whether native kernels work, and why not."""
    if "native" in patient.machine.kernel_sets:
        yield Finding(level="ok", what="native kernels work")
    elif find.compiler_path() and set(patient.processor.instruction_sets) >= set(AVX2.needed):
        yield Finding(
            level="warn",
            what="native kernels were not available when this machine was measured",
            why="attention and pointwise work run several times slower without them",
            fix="narrows probe --refresh",
        )
    elif patient.machine.device.kind == "cpu" and find.compiler_path():
        yield Finding(
            level="warn",
            what="native kernels do not run here",
            why=f"they need {', '.join(AVX2.needed)}, and this processor lacks some",
            fix="nothing is to be done: torch's kernels take their place",
        )


def _installer(root: Path) -> Callable[[str], str]:
    """How this system's packages are installed; names are Debian's, mapped where they differ."""
    told = places.text(root / "etc/os-release").lower()
    names = {"fedora": "dnf install -y", "rhel": "dnf install -y", "arch": "pacman -S",
             "alpine": "apk add", "suse": "zypper install"}  # fmt: skip
    other = {"g++": {"fedora": "gcc-c++", "rhel": "gcc-c++", "arch": "gcc", "suse": "gcc-c++"},
             "python3-dev": {"fedora": "python3-devel", "rhel": "python3-devel",
                             "arch": "python", "suse": "python3-devel"}}  # fmt: skip
    family = next((name for name in names if name in told), None)
    if find.accelerators(root) == ("apple: GPU",):
        return lambda package: "xcode-select --install"
    if family is None:
        return lambda package: f"sudo apt-get install -y {package}"
    return lambda package: f"sudo {names[family]} {other.get(package, {}).get(family, package)}"
