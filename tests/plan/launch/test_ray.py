from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from narrows.plan.launch.ray import Ray
from narrows.plan.launch.work import Work

MakeWork = Callable[..., Work]
Kept = Callable[[Path], list[dict[str, Any]]]
TWO = {"data": 2, "tensor": 1, "threads": 1}


def constants(text: str) -> dict[str, Any]:
    """What the script sets at its top."""
    assigned = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assigned}


def test_the_script_holds_the_plan(make_work: MakeWork) -> None:
    run = '/a """quoted""" \\ folder'
    text = Ray(device="cpu").text(make_work(run=run))
    assert constants(text) == {
        "RUN": run, "ARGUMENTS": ["train", "/here/plan.toml", "--run", run], "PROCESSES": 8,
        "THREADS": 3, "GPU": False, "RESTARTS": 3,
    }  # fmt: skip
    assert 'resources_per_worker={"CPU": THREADS}' in text
    assert constants(Ray(device="gpu").text(make_work()))["GPU"] is True


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
def test_ray_runs_it_and_after_a_failure_resumes(
    failing: bool, make_work: MakeWork, stub: dict[str, str], kept: Kept, tmp_path: Path
) -> None:
    pytest.importorskip("ray.train")
    run = tmp_path / "run of Bob's"
    file = tmp_path / "launch.py"
    file.write_text(Ray(device="cpu").text(make_work(nodes=1, layout=TWO, run=str(run))))
    environment = {**stub, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "HOME": str(tmp_path)}
    environment |= {"FAIL_ONCE": "1"} if failing else {}
    done = subprocess.run(
        [sys.executable, str(file)], env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = kept(run)
    assert [(each["RANK"], each["LOCAL_RANK"]) for each in said] == [("0", "0"), ("1", "1")]
    resume = ["--resume"] if failing else []
    for each in said:
        assert each["total"] == 3.0
        assert each["arguments"] == ["train", "/here/plan.toml", "--run", str(run), *resume]
