from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from narrows.plan.launch.torchrun import Torchrun
from narrows.plan.launch.work import Work
from narrows.spec.errors import BadInput

MakeWork = Callable[..., Work]
Kept = Callable[[Path], list[dict[str, Any]]]
TWO = {"data": 2, "tensor": 1, "threads": 1}


def test_a_script_is_short_and_says_what_to_do(make_work: MakeWork) -> None:
    text = Torchrun(head="node0").text(make_work())
    assert text == (
        "#!/bin/sh\n"
        "# Plays_of.1600: data 4, tensor 2, as 2 x 4 processes; predicted: 4.75 min on bench\n"
        "# Start: sh FILE NODE on each node, NODE from 0 to 1.\n"
        "# After a failure torchrun starts all processes of a node again, so many times; they\n"
        "# go on from the newest checkpoint.\n"
        "# Every node needs, at the same paths, the plan, the run folder and the text that is in\n"
        "# /data\n"
        "set -eu\n"
        "\n"
        "# Threads of one process; torchrun would set 1.\n"
        "export OMP_NUM_THREADS=3\n"
        "\n"
        'exec torchrun --nnodes 2 --node-rank "${1:?which node is this?}" \\\n'
        "  --master-addr node0 --master-port 29500 \\\n"
        "  --nproc-per-node 4 \\\n"
        "  --max-restarts 3 --no-python -- narrows train /here/plan.toml --run /shared/runs/plays\n"
    )


def test_several_nodes_need_a_head(make_work: MakeWork) -> None:
    with pytest.raises(BadInput, match="first one, whose address is not known") as caught:
        Torchrun().text(make_work())
    assert caught.value.hint is not None and "--head NAME" in caught.value.hint
    assert "--standalone" in Torchrun().text(make_work(nodes=1))


def test_this_machine_is_the_first_node(make_work: MakeWork) -> None:
    assert Torchrun().submission(make_work(nodes=1), "it.sh") == ["sh", "it.sh"]
    assert Torchrun().submission(make_work(nodes=2), "it.sh") == ["sh", "it.sh", "0"]


@pytest.mark.dist
@pytest.mark.slow
def test_torchrun_starts_the_processes(
    make_work: MakeWork, stub: dict[str, str], kept: Kept, tmp_path: Path
) -> None:
    run = tmp_path / "run of Bob's"
    work = make_work(nodes=1, layout=TWO, run=str(run), resume=True)
    file = tmp_path / "launch.sh"
    file.write_text(Torchrun().text(work))
    subprocess.run(["sh", str(file)], env=stub, check=True, timeout=120)
    said = kept(run)
    assert [each["LOCAL_RANK"] for each in said] == ["0", "1"]
    for each in said:
        assert each["total"] == 3.0 and each["OMP_NUM_THREADS"] == "1"
        assert each["arguments"] == ["train", "/here/plan.toml", "--run", str(run), "--resume"]


@pytest.mark.dist
@pytest.mark.slow
def test_two_nodes_meet_at_the_head(
    make_work: MakeWork, stub: dict[str, str], kept: Kept, tmp_path: Path
) -> None:
    work = make_work(nodes=2, layout=TWO, run=str(tmp_path / "run"))
    file = tmp_path / "launch.sh"
    file.write_text(Torchrun(head="127.0.0.1", port=29517).text(work))
    nodes = [subprocess.Popen(["sh", str(file), str(node)], env=stub) for node in (1, 0)]
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    said = kept(tmp_path / "run")
    assert [(each["RANK"], each["LOCAL_RANK"]) for each in said] == [("0", "0"), ("1", "0")]
    assert {each["total"] for each in said} == {3.0}


def test_a_node_without_its_number_is_told_so(make_work: MakeWork, tmp_path: Path) -> None:
    file = tmp_path / "launch.sh"
    file.write_text(Torchrun(head="node0").text(make_work()))
    done = subprocess.run(["sh", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "which node is this?" in done.stderr
