from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux schedules so")
PROGRAM = """
import os, sys, tempfile, time
from pathlib import Path
import torch.distributed as dist
from narrows.hardware.waking import waking_gently

if len(sys.argv) > 1:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
with tempfile.TemporaryDirectory() as folder, waking_gently():
    store = dist.FileStore(folder + "/store", 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
def threads():
    tasks = Path("/proc/self/task").iterdir()
    return {(task / "comm").read_text().strip(): int(task.name) for task in tasks}
# A thread names itself once it runs, which on a busy machine is later than here.
soon = time.monotonic() + 20.0
while "pt_gloo_runloop" not in threads() and time.monotonic() < soon:
    time.sleep(0.01)
for name, number in threads().items():
    print(name, os.sched_getscheduler(number))
print("main", os.sched_getscheduler(0))
"""


def policies(*arguments: str) -> dict[str, int]:
    """By its name, how each thread of a process that joined a group is scheduled."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in said.splitlines())}


def test_threads_of_a_group_let_others_finish() -> None:
    found = policies()
    assert found["gloo_tcp_loop"] == found["pt_gloo_runloop"] == os.SCHED_BATCH
    assert found["main"] == os.SCHED_OTHER


def test_who_is_scheduled_otherwise_stays_so() -> None:
    assert set(policies("idle").values()) == {os.SCHED_IDLE}
