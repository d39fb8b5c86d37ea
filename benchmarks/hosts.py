"""Several hosts on one machine: network namespaces joined by a bridge, each behind a slow link.

Runs a command in each of them, with the variables by which its processes find each other:

    python benchmarks/hosts.py --hosts 2 --rate 100mbit -- narrows probe --link

Needs an administrator's rights and iproute2. Each host has one core: the first, the second, and so
on around. What a killed run leaves behind, the next one takes away.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

PREFIX = "narrows"
NETWORK = "10.77.0"
REAL_TIME = "let nothing else on these cores disturb it: other work stands still meanwhile"
RATES = ("100mbit", "1gbit", "10gbit")
_PORT = 29555
_PLACES = Path("/run/netns")
_QUEUE = "8mb"
"""Longer than what connections have under way: nothing is dropped."""
_BURST_S, _BURST_LEAST = 1e-4, 8_000
"""What a bucket holds passes at once: little, but so much that a late timer costs no bandwidth."""
_PR_SET_PDEATHSIG = 1
_PRIORITY = -15
_LOOK_S, _LAST_WORDS_S = 0.05, 5.0


class Finished(NamedTuple):
    """What a command did on one host."""

    code: int
    said: str
    told: str


class CannotEmulate(Exception):
    """Why this machine makes no namespaces; for the user to read."""


def obstacle() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    missing = [tool for tool in ("ip", "tc", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: install iproute2 and util-linux"
    if os.geteuid() != 0:
        return "network namespaces need an administrator: run it as root"
    trial = f"{PREFIX}-{os.getpid()}-trial"
    try:
        _run("ip", "netns", "add", trial)
        _run("ip", "netns", "delete", trial)
    except CannotEmulate as refused:
        return f"a container without the right to: {refused}"
    return None


class Hosts:
    """`count` hosts, whose links carry `rate` each way; taken down by `hosts()`.

    What runs on them is preferred to other work; in `real_time` all other work on their cores
    stands still until they wait.
    """

    def __init__(self, count: int, rate: str, *, real_time: bool) -> None:
        self.count, self.rate, self.real_time = count, rate, real_time
        self.names = [f"{PREFIX}-{os.getpid()}-{host}" for host in range(count)]
        self.bridge = f"{PREFIX}-{os.getpid()}-bridge"

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] = os.environ,
        *, seconds: float = 600.0,
    ) -> list[Finished]:  # fmt: skip
        """What `command` did on each host, one process a host, which find each other.

        Where it fails on one, the others are ended a little later.
        """
        return self._run(range(self.count), command, environment, seconds)

    def run_alone(
        self, command: Sequence[str], environment: Mapping[str, str], *, seconds: float = 600.0
    ) -> Finished:
        """What `command` did on the first host."""
        return self._run(range(1), command, environment, seconds)[0]

    def _run(
        self, places: range, command: Sequence[str], environment: Mapping[str, str], seconds: float
    ) -> list[Finished]:
        alone = len(places) == 1
        with tempfile.TemporaryDirectory() as folder:
            started = [
                self._start(host, command, {
                    **environment, "OMP_NUM_THREADS": "1", **({} if alone else self._group(host))
                }, Path(folder))
                for host in places
            ]  # fmt: skip
            try:
                late = _wait(started, seconds)
            finally:
                self._end()
            return [
                _finished(process, Path(folder) / str(host), f"ended after {seconds:.0f} s" * late)
                for host, process in enumerate(started)
            ]

    def _group(self, host: int) -> dict[str, str]:
        return {
            "RANK": str(host), "WORLD_SIZE": str(self.count), "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": f"{NETWORK}.1", "MASTER_PORT": str(_PORT),
            "GLOO_SOCKET_IFNAME": "eth0",
        }  # fmt: skip

    def _start(
        self, host: int, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        allowed = sorted(os.sched_getaffinity(0))
        core = allowed[host % len(allowed)]

        def prepare() -> None:
            os.sched_setaffinity(0, {core})
            _go_first(real_time=self.real_time)
            _die_with_parent()

        said, told = ((folder / f"{host}.{what}").open("wb") for what in ("said", "told"))
        with said, told:
            return subprocess.Popen(
                ["nsenter", f"--net={_PLACES / self.names[host]}", *command],
                env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=told,
                start_new_session=True, preexec_fn=prepare,
            )  # fmt: skip

    def _end(self) -> None:
        """Whatever still runs in a namespace: a command may have started others."""
        for name in self.names:
            _kill_inside(name)

    def build(self) -> None:
        """Make namespaces, bridge, links and their limits."""
        _run("ip", "netns", "add", self.bridge)
        inside = ("ip", "-n", self.bridge)
        _run(*inside, "link", "add", "br0", "type", "bridge")
        _run(*inside, "link", "set", "br0", "up")
        for host, name in enumerate(self.names):
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"port{host}", "netns", self.bridge, "type", "veth",
                 "peer", "name", "eth0", "netns", name)  # fmt: skip
            _run(*inside, "link", "set", f"port{host}", "master", "br0", "up")
            here = ("ip", "-n", name)
            _run(*here, "address", "add", f"{NETWORK}.{host + 1}/24", "dev", "eth0")
            _run(*here, "link", "set", "lo", "up")
            # A bucket cuts what does not fit into it in single packets, which takes a core's time.
            burst = _burst(self.rate)
            _run(*here, "link", "set", "eth0", "up", "gso_max_size", str(min(burst, 65536)))
            _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", self.rate,
                 "burst", str(burst), "limit", _QUEUE)  # fmt: skip

    def remove(self) -> None:
        """Take down what is there of it."""
        for name in (*self.names, self.bridge):
            _remove(name)


@contextmanager
def hosts(count: int, rate: str, *, real_time: bool = False) -> Iterator[Hosts]:
    """So many hosts within it; raises CannotEmulate where there can be none."""
    why = obstacle()
    if why:
        raise CannotEmulate(why)
    _remove_leftovers()
    made = Hosts(count, rate, real_time=real_time)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        made.build()
        yield made
    finally:
        made.remove()
        signal.signal(signal.SIGTERM, before)


def _burst(rate: str) -> int:
    """Bytes of the bucket."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k|m|g)bit", rate)
    if not found:
        raise CannotEmulate(f'the rate "{rate}" is not one of tc, such as {", ".join(RATES)}')
    bits = float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2]]
    return max(_BURST_LEAST, int(bits / 8 * _BURST_S))


def _remove_leftovers() -> None:
    """Of runs whose process is gone; what other runs use stays."""
    for place in _PLACES.glob(f"{PREFIX}-*-*"):
        owner = place.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove(place.name)


def _remove(name: str) -> None:
    if (_PLACES / name).exists():
        _kill_inside(name)
        _run("ip", "netns", "delete", name)


def _kill_inside(name: str) -> None:
    """What runs in a namespace of ours, nobody else can have started."""
    for pid in _run("ip", "netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotEmulate(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _wait(started: list[subprocess.Popen[bytes]], seconds: float) -> bool:
    """Until all have ended, or a little after one failed; whether it took too long."""
    until = time.monotonic() + seconds
    failed = False
    while any(process.poll() is None for process in started):
        if not failed and any(process.poll() for process in started):
            failed, until = True, min(until, time.monotonic() + _LAST_WORDS_S)
        if time.monotonic() > until:
            return not failed
        time.sleep(_LOOK_S)
    return False


def _finished(process: subprocess.Popen[bytes], path: Path, late: str) -> Finished:
    said, told = (
        path.with_suffix(f".{what}").read_text(errors="replace") for what in ("said", "told")
    )
    return Finished(process.wait(), said, told + late)


def _go_first(*, real_time: bool) -> None:
    """Be preferred, as the probe is: what else runs on these cores is not what is measured."""
    if real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return
    os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_PRIORITY))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the command, or show what was made where none is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rate", default=RATES[0], help="of tc, such as 100mbit")
    parser.add_argument("--real-time", action="store_true", help=REAL_TIME)
    parser.add_argument("--seconds", type=float, default=600.0, help="after which all is ended")
    parser.add_argument("command", nargs="*", help="after --; what to run on each host")
    chosen = parser.parse_args()
    command = chosen.command or ["sh", "-c", "ip -brief address; tc qdisc show dev eth0"]
    try:
        with hosts(chosen.hosts, chosen.rate, real_time=chosen.real_time) as made:
            done = made.run(command, seconds=chosen.seconds)
    except CannotEmulate as why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    for host, each in enumerate(done):
        print(f"host {host} ended with code {each.code}", file=sys.stderr)
        sys.stderr.write(each.told)
        sys.stdout.write(each.said)
    return max((abs(each.code) for each in done), default=0)


if __name__ == "__main__":
    sys.exit(main())
