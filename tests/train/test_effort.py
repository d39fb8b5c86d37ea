from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from narrows.train.effort import effort_of, efforts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
SPINS = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass\n"
BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPINS!r}]);"


@pytest.mark.parametrize("code", [SPINS, BELOW], ids=["itself", "in a child"])
def test_work_counts_and_sleep_does_not(code: str) -> None:
    words = [
        sys.executable,
        "-c",
        f"{code}\nprint('done', flush=True)\nimport time\ntime.sleep(60)",
    ]
    with subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(0.2)
        worked = efforts([process.pid])[process.pid]
        time.sleep(0.5)
        slept = efforts([process.pid])[process.pid]
        process.kill()
    assert worked.processor_s >= 0.3
    assert slept.processor_s - worked.processor_s <= 0.02
    assert not slept.disk


def test_of_who_leads_no_session_nothing_is_known() -> None:
    assert efforts([2**22 + os.getpid()]) == {}


def test_of_what_a_process_started_the_work_is_its_own() -> None:
    before = effort_of(os.getpid())
    with subprocess.Popen([sys.executable, "-c", SPINS + "input()"], stdin=subprocess.PIPE) as one:
        time.sleep(1.0)
        after = effort_of(os.getpid())
        one.communicate(b"\n")
    assert before is not None and after is not None
    assert after.processor_s - before.processor_s >= 0.2
    assert effort_of(2**22 + os.getpid()) is None
