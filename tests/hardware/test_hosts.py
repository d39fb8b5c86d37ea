"""Several hosts on one machine, as benchmarks/hosts.py makes them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import narrows
from narrows.spec.units import Bytes

FILE = Path(__file__).parents[2] / "benchmarks" / "hosts.py"
SOURCE = str(Path(narrows.__file__).parents[1])
PLACES = Path("/run/netns")


def loaded() -> ModuleType:
    specification = importlib.util.spec_from_file_location("hosts", FILE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


hosts = loaded()
OBSTACLE = hosts.obstacle()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.dist,
    pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE)),
]


def made_by(pid: int) -> list[str]:
    return [place.name for place in PLACES.glob(f"{hosts.PREFIX}-{pid}-*")]


@pytest.fixture
def started() -> Iterator[subprocess.Popen[str]]:
    """Three hosts that sleep, made by another process."""
    command = [sys.executable, str(FILE), "--hosts", "3", "--", "sleep", "300"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120.0
    while time.monotonic() < until and len(sleeping(process.pid)) < 3:
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()
    with hosts.hosts(1, "1gbit"):
        pass


def sleeping(pid: int) -> list[int]:
    """What runs in the namespaces that a process made."""
    found: list[int] = []
    for name in made_by(pid):
        said = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        found += map(int, said.stdout.split())
    return found


def runs(pid: int) -> bool:
    """Not so what has ended and is only still listed."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_each_host_has_a_place_a_core_and_the_others() -> None:
    program = (
        "import json, os, socket; print(json.dumps([os.environ['RANK'], os.environ['WORLD_SIZE'],"
        " len(os.sched_getaffinity(0)), os.stat('/proc/self/ns/net').st_ino,"
        " os.environ['GLOO_SOCKET_IFNAME']]))"
    )
    with hosts.hosts(3, "100mbit") as three:
        found = [json.loads(each.said) for each in three.run([sys.executable, "-c", program])]
        alone = three.run_alone([sys.executable, "-c", "import os; print(os.getenv('RANK'))"], {})
        reached = three.run(["sh", "-c", "ip neighbour; cat /sys/class/net/eth0/operstate"])
        assert len(made_by(os.getpid())) == 4
    assert [each[0] for each in found] == ["0", "1", "2"]
    assert [each[1:3] for each in found] == [["3", 1]] * 3
    assert len({each[3] for each in found}) == 3 and found[0][4] == "eth0"
    assert alone.said.strip() == "None" and [each.code for each in reached] == [0, 0, 0]
    assert made_by(os.getpid()) == []


def test_where_one_fails_the_others_are_ended() -> None:
    program = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit(7); time.sleep(300)"
    begun = time.monotonic()
    with hosts.hosts(2, "1gbit") as two:
        first, second = two.run([sys.executable, "-c", program])
    assert (first.code, second.code) == (-signal.SIGKILL, 7)
    assert time.monotonic() - begun < 30.0


def test_what_takes_too_long_is_ended() -> None:
    with hosts.hosts(2, "1gbit") as two:
        done = two.run(["sleep", "300"], seconds=1.0)
    assert [each.code for each in done] == [-signal.SIGKILL] * 2
    assert "ended after 1 s" in done[0].told


def test_a_stopped_run_takes_its_hosts_down(started: subprocess.Popen[str]) -> None:
    assert len(sleeping(started.pid)) == 3
    started.terminate()
    started.wait(timeout=20)
    assert made_by(started.pid) == []


def test_what_a_killed_run_leaves_goes_at_the_next_start(started: subprocess.Popen[str]) -> None:
    inside = sleeping(started.pid)
    assert len(inside) == 3
    started.kill()
    started.wait()
    assert len(made_by(started.pid)) == 4
    with hosts.hosts(1, "1gbit"):
        assert made_by(started.pid) == []
    assert [pid for pid in inside if runs(pid)] == []


def test_hosts_of_a_run_that_goes_on_stay(started: subprocess.Popen[str]) -> None:
    with hosts.hosts(1, "1gbit"):
        assert len(made_by(started.pid)) == 4 and len(sleeping(started.pid)) == 3


def test_a_wrong_rate_is_told() -> None:
    with pytest.raises(hosts.CannotEmulate, match="not one of tc"):
        with hosts.hosts(1, "fast"):
            pass
    assert made_by(os.getpid()) == []


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The link of two hosts at 100 Mbit/s, measured by the command."""
    environment = {
        **os.environ, "PYTHONPATH": SOURCE, "NARROWS_HOME": str(tmp_path_factory.mktemp("home"))
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", "narrows", "probe", "--link", "--json"]
    with hosts.hosts(2, "100mbit") as two:
        first, second = two.run(command, environment)
    assert (first.code, second.code) == (0, 0), first.told + second.told
    assert second.said == ""
    found: dict[str, object] = json.loads(first.said)
    return found


def test_the_link_is_as_fast_as_it_was_made(measured: dict[str, object]) -> None:
    link = measured["link"]
    assert isinstance(link, dict)
    assert (link["ranks"], link["hosts"], link["backend"]) == (2, 2, "gloo")
    for operation, share in (("all_reduce", 1.0), ("send", 1.0), ("shift", 1.0),
                             ("all_to_all", 0.5), ("reduce_scatter", 1.0)):  # fmt: skip
        points = [each for each in link["points"] if each["operation"] == operation]
        largest = max(points, key=lambda each: Bytes.parse(each["message"]))
        bits = 8 * share * Bytes.parse(largest["message"])
        assert 70e6 < bits / largest["seconds"] < 102e6, operation
