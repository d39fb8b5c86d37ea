from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import narrows
from narrows.hardware import find

from .conftest import Tree

XEON_FLAGS = (
    "fpu sse2 fma avx avx2 avx512f avx512bw avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 "
    "amx_tile amx_int8 hypervisor"
)
XEON = f"""processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: {XEON_FLAGS}

processor\t: 1
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd asimdhp asimddp sve i8mm bf16 paca
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40

processor\t: 1
"""  # fmt: skip


def test_an_amx_xeon_with_hyper_threads_behind_an_affinity_mask(tree: Tree) -> None:
    root = tree(
        {
            "proc/cpuinfo": XEON,
            "proc/self/status": "Cpus_allowed_list:\t4-7,48-51\n",
            "sys/devices/system/cpu/present": "0-87\n",
            "sys/devices/system/node/online": "0-1\n",
            "sys/devices/system/cpu/cpu4/topology/thread_siblings_list": "4,48\n",
        }
    )
    found = find.processor(root)
    assert found.name == "Intel Xeon Platinum 8481C @ 2.70GHz"
    assert found.architecture == "x86_64"
    assert set(found.instruction_sets) >= {"avx512f", "avx512_vnni", "amx_bf16", "amx_int8"}
    assert (found.cores_present, found.cores_allowed) == (88, 8)
    assert (found.threads_per_core, found.numa_nodes) == (2, 2)
    assert find.has_bf16_unit(found)
    assert find.virtual(root)


def test_an_arm_server_names_itself_by_its_part(tree: Tree) -> None:
    root = tree(
        {
            "proc/cpuinfo": GRAVITON,
            "proc/self/status": "Cpus_allowed_list:\t0-3\n",
            "sys/devices/system/cpu/present": "0-3\n",
        }
    )
    found = find.processor(root)
    assert (found.name, found.architecture) == ("Neoverse-V1", "aarch64")
    assert found.instruction_sets == ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve")
    assert find.has_bf16_unit(found)


def test_a_processor_without_the_unit(tree: Tree) -> None:
    root = tree({"proc/cpuinfo": "model name\t: Intel(R) Core(TM) i5-7200U\nflags\t: avx2 fma\n"})
    found = find.processor(root)
    assert found.name == "Intel Core i5-7200U"
    assert not find.has_bf16_unit(found)


def test_caches_are_those_one_core_reaches(epyc: Path) -> None:
    assert find.processor(epyc).caches == {"L1d": 48 * 1024.0, "L3": 32 * 2**20}


def _limited(quota: str = "max 100000", memory: str = "max") -> dict[str, str]:
    return {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cpu.max": quota,
        "sys/fs/cgroup/memory.max": memory,
    }


def test_a_quota_lowers_the_cores_to_those_it_keeps_busy(epyc: Path, tree: Tree) -> None:
    found = find.processor(tree(_limited(quota="150000 100000")))
    assert (found.cores_present, found.cores_allowed, found.quota) == (2, 1, 1.5)


def test_memory_is_the_machines_or_the_containers(epyc: Path, tree: Tree) -> None:
    assert find.memory_capacity(epyc).value == 24684096 * 1024
    assert find.memory_free(epyc).value == 23340620 * 1024
    limited = tree(_limited(memory="1073741824") | {"sys/fs/cgroup/memory.current": "73741824"})
    assert find.memory_capacity(limited).value == 2**30
    assert find.memory_free(limited).value == 1e9
    assert "cgroup" in find.memory_capacity(limited).source


def test_accelerators_are_known_by_their_drivers(tree: Tree) -> None:
    root = tree(
        {
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ: 1\n",
            "sys/class/kfd/kfd/topology/nodes/0/properties": "cpu_cores_count 8\nsimd_count 0\n",
            "sys/class/kfd/kfd/topology/nodes/1/properties": "simd_count 304\n"
            "gfx_target_version 90402\n",
        }
    )
    assert find.accelerators(root) == ("nvidia: NVIDIA L4", "amd: gfx942")


@pytest.mark.parametrize(
    "change",
    [
        {"proc/self/status": "Cpus_allowed_list:\t1\n"},
        _limited(quota="100000 100000"),
        _limited(memory="4294967296"),
        {"proc/cpuinfo": XEON},
        {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: NVIDIA L4\n"},
    ],
    ids=["affinity", "quota", "memory", "processor", "accelerator"],
)
def test_the_fingerprint_knows_a_machine_again_and_another_apart(
    epyc: Path, tree: Tree, change: dict[str, str]
) -> None:
    first = find.fingerprint(epyc)
    assert find.fingerprint(epyc) == first
    assert find.fingerprint(tree(change)) != first


def test_free_memory_does_not_make_another_machine(epyc: Path, tree: Tree) -> None:
    first = find.fingerprint(epyc)
    tree({"proc/meminfo": "MemTotal:       24684096 kB\nMemAvailable:   1340620 kB\n"})
    assert find.fingerprint(epyc) == first


def test_a_compiler_that_appears_makes_another_machine(
    epyc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    without = find.fingerprint(epyc)
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    assert find.compiler_path() == str(tmp_path / "g++")
    assert find.fingerprint(epyc) != without


def test_here_it_finds_what_python_finds() -> None:
    found = find.processor()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= found.cores_allowed <= (allowed or 1) <= found.cores_present
    assert 0 < find.memory_free().value <= find.memory_capacity().value
    assert found.name


def test_the_version_of_torch_is_read_without_loading_it() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(narrows.__file__).parents[1])!r})\n"
        "from narrows.hardware import find\n"
        "said = find.torch_version()\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "assert said == torch.__version__, (said, torch.__version__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
