"""What is there and what of it is allowed, read from the system without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from narrows.hardware import cgroups, darwin, places
from narrows.spec.machine import Fact, Processor
from narrows.spec.units import Bytes

PROBE_VERSION = 1
"""Raised when what `probe` measures changes, so that older records are measured again."""

_TELLING_FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx10_1", "avx10_2", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "svebf16", "svei8mm",
    "sme", "sme2",
)  # fmt: skip
"""Flags, in the kernel's spelling, that decide how fast a product of matrices can be."""

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx10_2", "bf16", "svebf16"})

_ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd83"): "Neoverse-V3", ("0x41", "0xd8e"): "Neoverse-N3",
    ("0xc0", "0xac3"): "Ampere-1",
}  # fmt: skip
"""Names by implementer and part, from Linux's arch/arm64/include/asm/cputype.h."""


def processor(root: Path = places.ROOT) -> Processor:
    """The host's processor and how much of it this process may use.

    Cores are those the system schedules on (hardware threads); `cores_allowed` is the affinity
    mask, lowered to the container's quota.
    """
    if darwin.here(root):
        return darwin.processor()
    first = _first_core(root)
    present = places.cpu_list(places.text(root / "sys/devices/system/cpu/present"))
    affinity = _affinity(root) or present or tuple(range(os.cpu_count() or 1))
    quota = cgroups.limits(root).quota
    nodes = places.cpu_list(places.text(root / "sys/devices/system/node/online"))
    return Processor(
        name=_name(first),
        architecture=_architecture(first),
        instruction_sets=_instruction_sets(first),
        cores_present=max(len(present), len(affinity)),
        cores_allowed=_within(len(affinity), quota),
        threads_per_core=_threads_per_core(root, affinity[0]),
        numa_nodes=max(1, len(nodes)),
        quota=quota,
        caches=_caches(root, affinity[0]),
    )


def has_bf16_unit(found: Processor) -> bool:
    """Whether the processor multiplies bf16 in hardware."""
    return not _BF16_FLAGS.isdisjoint(found.instruction_sets)


def memory_capacity(root: Path = places.ROOT) -> Fact[Bytes]:
    """Memory this process may use: the container's limit, else what the machine has."""
    if darwin.here(root):
        return _measured(darwin.memory_bytes(), "hw.memsize")
    total = _meminfo_bytes(root, "MemTotal")
    limit = cgroups.limits(root).memory_bytes
    if limit is not None and limit < total:
        return _measured(limit, "the container's limit (cgroup)")
    return _measured(total, "MemTotal of /proc/meminfo")


def memory_free(root: Path = places.ROOT) -> Fact[Bytes]:
    """Memory this process could still take now without pushing anything out."""
    if darwin.here(root):
        return _measured(darwin.memory_bytes_free(), "vm_stat: free, inactive and speculative")
    available = _meminfo_bytes(root, "MemAvailable")
    below_limit = cgroups.limits(root).memory_bytes_free
    if below_limit is not None and below_limit < available:
        return _measured(below_limit, "left below the container's limit (cgroup)")
    return _measured(available, "MemAvailable of /proc/meminfo")


def threads() -> int:
    """As many as OMP_NUM_THREADS says, where it does, else one for each core that is allowed."""
    said = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))
    here = processor()
    return max(1, int(said[1]) if said else here.cores_allowed // here.threads_per_core)


def accelerators(root: Path = places.ROOT) -> tuple[str, ...]:
    """Accelerators whose driver is loaded, as `nvidia: NAME` or `amd: gfx942`, without torch."""
    if darwin.here(root):
        return ("apple: GPU",) if platform.machine() == "arm64" else ()
    nvidia = [
        places.fields(folder / "information").get("Model", "unknown")
        for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    ]
    amd: list[str] = []
    for folder in sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("*")):
        facts = places.fields(folder / "properties", separator=" ")
        if facts.get("simd_count", "0") != "0":
            amd.append(f"gfx{_gfx(int(facts.get('gfx_target_version', '0')))}")
    return tuple([f"nvidia: {name}" for name in nvidia] + [f"amd: {name}" for name in amd])


def virtual(root: Path = places.ROOT) -> bool:
    """Whether this is a virtual machine, as rented ones are."""
    return "hypervisor" in _first_core(root).get("flags", "").split()


def torch_version() -> str:
    """The installed torch's version, read from its files without importing it."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        return "none"
    written = places.text(Path(package.origin).with_name("version.py"))
    match = re.search(r"^__version__ = '([^']+)'", written, re.MULTILINE)
    return match[1] if match else "unknown"


def compiler_path() -> str | None:
    """The C++ compiler that torch and our kernels would call: CXX, else the first on PATH."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


def fingerprint(root: Path = places.ROOT) -> str:
    """Names the hardware, the allowance and the software that measurements depend on.

    Stable across restarts. It holds nothing of one copy of a machine, such as a serial number: on
    a second machine of the same kind the measurements hold as well.
    """
    devices = accelerators(root)
    first = _first_core(root)
    content = (
        processor(root),
        (first.get("cpu family"), first.get("model"), first.get("stepping")),
        round(memory_capacity(root).value / 2**30),
        devices,
        os.environ.get("CUDA_VISIBLE_DEVICES") if devices else None,
        torch_version(),
        bool(compiler_path()),
        sys.platform,
    )
    return f"{PROBE_VERSION}-{hashlib.sha256(repr(content).encode()).hexdigest()[:12]}"


def _measured(count: float, source: str) -> Fact[Bytes]:
    return Fact(value=Bytes(count), basis="measured", source=source)


def _first_core(root: Path) -> dict[str, str]:
    """The first block of /proc/cpuinfo; reading them all is slow where there are hundreds."""
    written = places.text(root / "proc/cpuinfo", limit=16384)
    found: dict[str, str] = {}
    for line in written.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        found[key.strip()] = value.strip()
    return found


def _name(first: dict[str, str]) -> str:
    if first.get("model name"):
        return re.sub(r"\((R|TM)\)|\s+CPU(?= @)| Processor$", "", first["model name"]).strip()
    part = (first.get("CPU implementer", ""), first.get("CPU part", ""))
    return _ARM_PARTS.get(part) or platform.processor() or platform.machine()


def _architecture(first: dict[str, str]) -> str:
    if "CPU implementer" in first:
        return "aarch64"
    return "x86_64" if "flags" in first else platform.machine()


def _instruction_sets(first: dict[str, str]) -> tuple[str, ...]:
    flags = set((first.get("flags") or first.get("Features") or "").split())
    return tuple(flag for flag in _TELLING_FLAGS if flag in flags)


def _affinity(root: Path) -> tuple[int, ...]:
    status = places.fields(root / "proc/self/status")
    return places.cpu_list(status.get("Cpus_allowed_list", ""))


def _within(cores: int, quota: float | None) -> int:
    """A quota of 2.5 cores keeps two threads busy; a third would only wait for its turn."""
    return cores if quota is None else max(1, min(cores, int(quota)))


def _threads_per_core(root: Path, core: int) -> int:
    topology = root / f"sys/devices/system/cpu/cpu{core}/topology"
    siblings = places.text(topology / "core_cpus_list")
    siblings = siblings or places.text(topology / "thread_siblings_list")
    return max(1, len(places.cpu_list(siblings)))


def _caches(root: Path, core: int) -> dict[str, Bytes]:
    """Size of each cache that this core reaches, by `L1d`, `L1i`, `L2`, `L3`."""
    found: dict[str, Bytes] = {}
    for index in sorted((root / f"sys/devices/system/cpu/cpu{core}/cache").glob("index*")):
        level, size = places.text(index / "level"), places.text(index / "size")
        match = re.fullmatch(r"(\d+)([KMG])", size)
        if not match:
            continue
        letter = {"Data": "d", "Instruction": "i"}.get(places.text(index / "type"), "")
        found[f"L{level}{letter}"] = Bytes(int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]])
    return found


def _meminfo_bytes(root: Path, key: str) -> int:
    written = places.fields(root / "proc/meminfo").get(key, "0 kB")
    return int(written.split()[0]) * 1024


def _gfx(version: int) -> str:
    """`90402` is written gfx942: major, minor and stepping, the last in hexadecimal."""
    return f"{version // 10000}{version // 100 % 100}{version % 100:x}"
