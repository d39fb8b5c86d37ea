from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from narrows.plan.launch.skypilot import SkyPilot
from narrows.plan.launch.work import Work
from narrows.spec.errors import BadInput

MakeWork = Callable[..., Work]
yaml = pytest.importorskip("yaml")
SETUP = "pip install uv\nuv pip install narrows"
TARGET = SkyPilot(
    device="gpu", accelerator="H100", setup=SETUP, bucket="s3://plays", cloud="aws/us-east-1"
)


def task(work: Work, target: SkyPilot = TARGET) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(target.text(work))
    return loaded


def test_the_task_is_what_was_asked(make_work: MakeWork) -> None:
    asked = task(make_work(run="runs/plays"))
    run = asked.pop("run")
    assert asked == {
        "name": "narrows-plays-of-1600", "num_nodes": 2, "setup": SETUP + "\n",
        "resources": {"accelerators": "H100:4", "infra": "aws/us-east-1"},
        "file_mounts": {
            "~/narrows/plan.toml": "/here/plan.toml", "/data": "/data",
            "~/runs": {"source": "s3://plays", "mode": "MOUNT_CACHED"},
        },
    }  # fmt: skip
    assert "narrows train narrows/plan.toml --run runs/plays\n" in run


def test_each_node_calls_torchrun_with_its_number(make_work: MakeWork, tmp_path: Path) -> None:
    (tmp_path / "torchrun").write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $*"\n')
    (tmp_path / "torchrun").chmod(0o755)
    script = task(make_work(run="runs/plays", resume=True))["run"]
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "SKYPILOT_NODE_RANK": "1",
             "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"},
    )  # fmt: skip
    assert done.stdout == (
        "3 --nnodes 2 --node-rank 1 --master-addr 10.0.0.7 --master-port 29500 --nproc-per-node 4 "
        "--max-restarts 3 --no-python -- narrows train narrows/plan.toml --run runs/plays "
        "--resume\n"
    )


def test_processors_are_asked_for_by_their_number(make_work: MakeWork) -> None:
    asked = task(make_work(nodes=1, run="runs/plays"), SkyPilot(device="cpu", setup="true"))
    assert asked["resources"] == {"cpus": "24+"}
    assert list(asked["file_mounts"]) == ["~/narrows/plan.toml", "/data"]


def test_what_is_needed_and_not_known_is_named(make_work: MakeWork) -> None:
    with pytest.raises(BadInput, match="which GPU") as caught:
        SkyPilot(device="gpu", setup="true")
    assert caught.value.hint == "--accelerator H100"
    with pytest.raises(BadInput, match="no use with --device cpu"):
        SkyPilot(device="cpu", setup="true", accelerator="H100")
    with pytest.raises(BadInput, match="cannot be mounted at the folder that plays lies in"):
        TARGET.text(make_work(run="plays"))
    with pytest.raises(BadInput, match="share no disk"):
        SkyPilot(device="cpu", setup="true").text(make_work(run="runs/plays"))


def test_skypilot_itself_reads_it(make_work: MakeWork, tmp_path: Path) -> None:
    sky = pytest.importorskip("sky")
    file = tmp_path / "plan.toml"
    file.touch()
    work = make_work(nodes=1, run="runs/plays", file=str(file))
    rented = SkyPilot(device="gpu", setup="true", accelerator="H100", cloud="aws")
    for target in (SkyPilot(device="cpu", setup="true"), rented):
        text = target.text(work).replace("/data", str(tmp_path))
        (tmp_path / "task.yaml").write_text(text)
        read = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
        assert (read.name, read.num_nodes) == ("narrows-plays-of-1600", 1)
