from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

import narrows

SOURCE = str(Path(narrows.__file__).parents[1])
BEGINNING = f"""
import sys; sys.path.insert(0, {SOURCE!r})
from narrows.hardware.measure.links import joined, local
from narrows.hardware.measure import links
from narrows.spec.errors import BadInput
"""


def started(program: str) -> subprocess.Popen[str]:
    """In a process of its own: links fork, which must come before torch's threads."""
    command = [sys.executable, "-W", "ignore", "-c", BEGINNING + program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(program: str) -> str:
    process = started(program)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    return said


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def joining(rank: int, ranks: int, port: int) -> str:
    environment = {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return f"link = joined({environment!r}, threads=1, seconds=1.5)\n"


@pytest.mark.dist
def test_three_processes_meet_and_every_collective_is_timed() -> None:
    run(
        "link = local(3, threads=2, seconds=3.0)\n"
        "assert (link.backend, link.ranks, link.hosts) == ('gloo', 3, 1)\n"
        "found = {}\n"
        "for point in link.points:\n"
        "    assert point.ranks == 3 and point.seconds > 1e-6\n"
        "    found.setdefault(point.operation, []).append(point.message)\n"
        "assert len(found) == 7\n"
        "assert all(sizes[0] == 1024 and sizes[-1] >= 1 << 16 for sizes in found.values()), found\n"
        "assert all(sizes == sorted(set(sizes)) for sizes in found.values())\n"
        "assert link.latency.value > 1e-6 and link.bandwidth.value > 1e6\n"
        "assert 0.2 < link.together.value < 30.0 and '3 x 1' in link.together.source\n"
    )


@pytest.mark.dist
def test_processes_that_somebody_started_meet_and_find_the_same() -> None:
    port = free_port()
    both = [started(joining(rank, 2, port) + "print(link)") for rank in range(2)]
    said = [process.communicate(timeout=90)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] and "ranks=2, hosts=1" in said[0]


@pytest.mark.dist
def test_who_does_not_come_is_named() -> None:
    program = (
        "links._MEETING_S = 2.0\n"
        "try:\n    " + joining(0, 4, free_port()) + "except BadInput as error:\n    print(error)"
    )
    said = run(program)
    assert "3 of 4 processes did not come within 2 s: rank 1, 2, 3, on host 0, 1 of 2" in said


@pytest.mark.dist
def test_a_first_process_out_of_reach_is_named() -> None:
    port = free_port()
    program = (
        "links._MEETING_S = 2.0\n"
        "try:\n    " + joining(1, 2, port) + "except BadInput as error:\n    print(error)"
    )
    assert f"process 1 does not reach the first one at 127.0.0.1:{port}" in run(program)


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "RANK"])
def test_what_says_where_to_meet_is_asked_for(missing: str) -> None:
    from narrows.hardware.measure.links import joined
    from narrows.spec.errors import BadInput

    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    del environment[missing]
    with pytest.raises(BadInput, match=f"{missing} is not set"):
        joined(environment, threads=1, seconds=1.0)


def test_a_place_that_is_no_number_is_told() -> None:
    from narrows.hardware.measure.links import joined
    from narrows.spec.errors import BadInput

    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "http"}
    with pytest.raises(BadInput, match='MASTER_PORT is "http"'):
        joined(environment, threads=1, seconds=1.0)


@pytest.mark.gpu
def test_processes_with_devices_of_their_own_talk_by_nccl() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("it takes two devices")
    run(
        "link = local(2, threads=1, seconds=5.0)\n"
        "assert (link.backend, link.ranks) == ('nccl', 2)\n"
        "assert link.bandwidth.value > 1e8 and len({p.operation for p in link.points}) == 7\n"
    )
