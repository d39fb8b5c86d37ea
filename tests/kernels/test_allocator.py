from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from narrows.kernels.build import obstacle

SOURCE = str(Path(__file__).parents[2] / "src")
KEPT = f"""
import sys
sys.path.insert(0, {SOURCE!r})
import torch
from narrows.kernels.allocator import keep_pages
assert keep_pages()
"""
FAULTS = """
import resource
import torch
def use():
    a, b = torch.ones(10_000_000), torch.ones(9_000_000)
for _ in range(20):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pooled = pytest.mark.skipif(obstacle() is not None, reason=f"no pool here: {obstacle()}")


def said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_pages_are_used_again() -> None:
    # 76 MB, five times, once the heap has found its size; buffers above 32 MB are new otherwise.
    assert int(said(KEPT + FAULTS)) < 0.1 * int(said(FAULTS))


@pooled
def test_a_hole_serves_the_same_buffer_again() -> None:
    said(
        KEPT + "first, second, third = (torch.ones(1_000_003) for _ in range(3))\n"
        "place = second.data_ptr()\n"
        "del second\n"
        "assert torch.ones(1_000_003).data_ptr() == place and place % 64 == 0\n"
    )


@pooled
def test_holes_side_by_side_are_one() -> None:
    said(
        KEPT + "every = [torch.ones(1_000_000) for _ in range(5)]\n"
        "place = every[1].data_ptr()\n"
        "for gone in ((2, 1, 3), (1, 2, 3), (3, 2, 1)):\n"
        "    for each in gone:\n"
        "        every[each] = None\n"
        "    assert torch.empty(3_000_000).data_ptr() == place\n"
        "    for each in (1, 2, 3):\n"
        "        every[each] = torch.ones(1_000_000)\n"
    )


@pooled
def test_nothing_is_written_over_and_no_more_is_held_than_was_in_use() -> None:
    """Twenty thousand buffers of 64 KB to 2 MB come and go, at random, on two threads."""
    said(
        KEPT + "import random, resource, threading\n"
        "def churn(seed):\n"
        "    drawn, live = random.Random(seed), []\n"
        "    for turn in range(10_000):\n"
        "        if len(live) < 30 and drawn.random() < 0.6:\n"
        "            size = drawn.randrange(1 << 16, 1 << 21)\n"
        "            live.append((torch.full((size,), turn % 9, dtype=torch.uint8), turn % 9))\n"
        "        elif live:\n"
        "            tensor, value = live.pop(drawn.randrange(len(live)))\n"
        "            assert bool((tensor == value).all())\n"
        "    for tensor, value in live:\n"
        "        assert bool((tensor == value).all())\n"
        "    done.append(seed)\n"
        "done = []\n"
        "torch.full((1 << 21,), 1, dtype=torch.uint8) == 1\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "both = [threading.Thread(target=churn, args=(seed,)) for seed in (1, 2)]\n"
        "[each.start() for each in both], [each.join() for each in both]\n"
        "assert sorted(done) == [1, 2]\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 1.25 * 60 * (1 << 11), grown\n"
    )


@pooled
def test_what_is_freed_is_given_back() -> None:
    said(
        KEPT + "from narrows.kernels.allocator import give_back\n"
        "from narrows.kernels.meter import MemoryMeter\n"
        "meter = MemoryMeter('cpu')\n"
        "every = [torch.full((1 << 20,), float(n)) for n in range(20)]\n"
        "kept = every[3::5]\n"
        "del every\n"
        "assert meter.now() > 80e6\n"
        "give_back()\n"
        "assert 16e6 < meter.now() < 40e6, meter.now()\n"
        "again = [torch.full((1 << 20,), 7.0) for _ in range(16)]\n"
        "assert [float(each.mean()) for each in kept] == [3.0, 8.0, 13.0, 18.0]\n"
        "assert all(float(each.mean()) == 7.0 for each in again) and meter.now() > 80e6\n"
    )


@pooled
def test_a_profiler_sees_what_is_taken_and_freed() -> None:
    said(
        KEPT + "from torch.profiler import ProfilerActivity, profile\n"
        "with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:\n"
        "    kept, freed, small = torch.ones(1 << 20), torch.ones(1 << 21), torch.ones(16)\n"
        "    del freed\n"
        "events = profiled.profiler.kineto_results.events()\n"
        "sizes = sorted(each.nbytes() for each in events if each.name() == '[memory]')\n"
        "assert sizes == [-8 << 20, 64, 4 << 20, 8 << 20], sizes\n"
    )


@pooled
def test_a_forked_process_has_a_pool_that_works() -> None:
    said(
        KEPT + "import os, threading\n"
        "torch.set_num_threads(1)\n"
        "kept, running = torch.full((1 << 20,), 3.0), [True]\n"
        "def busy():\n"
        "    while running:\n"
        "        torch.ones(1 << 18)\n"
        "other = threading.Thread(target=busy)\n"
        "other.start()\n"
        "for _ in range(20):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        one = torch.empty(1 << 20).fill_(2.0)\n"
        "        os._exit(0 if float(kept[-1]) == 3.0 and float(one[-1]) == 2.0 else 1)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "running.clear()\n"
        "other.join()\n"
    )


@pooled
def test_without_a_pool_one_is_told_and_the_heap_serves(tmp_path: Path) -> None:
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho 'error: no such header' >&2; exit 1\n")
    broken.chmod(0o755)
    said(
        f"import os; os.environ |= {{'CXX': {str(broken)!r}, 'NARROWS_HOME': {str(tmp_path)!r}}}\n"
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        + "".join(f"    {line}\n" for line in KEPT.splitlines())
        + "assert 'no such header' in str(told[-1].message), told\n"
        "assert float(torch.ones(1 << 20).sum()) == 1 << 20\n"
    )


@pooled
def test_where_the_system_gives_no_addresses_one_is_told_and_the_heap_serves() -> None:
    said(
        "import resource, warnings\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        + "".join(f"    {line}\n" for line in KEPT.splitlines())
        + "assert 'ulimit -v' in str(told[-1].message), told\n"
        "assert float(torch.ones(1 << 20).sum()) == 1 << 20\n"
    )
