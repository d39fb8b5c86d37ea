from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from narrows.train.effort import efforts

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
