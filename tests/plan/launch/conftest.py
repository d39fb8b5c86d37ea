from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.plan.launch.work import Work, placed
from narrows.plan.plan import make_plan
from narrows.spec.dataset import Dataset
from narrows.spec.job import Job, budget
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan

MakeWork = Callable[..., Work]


@pytest.fixture(scope="module")
def plan(make_machine: Callable[..., Machine], make_dataset: Callable[..., Dataset]) -> Plan:
    """A plan of this machine, laid over eight processes."""
    job = Job(name="Plays_of.1600", budget=budget("5min"))
    planned = make_plan(job, make_machine(), make_dataset())
    layout = msgspec.structs.replace(planned.layout, data=4, tensor=2, threads=3)
    return msgspec.structs.replace(planned, layout=layout)


@pytest.fixture(scope="module")
def make_work(plan: Plan) -> MakeWork:
    """Work of that plan, on two nodes, its layout and its own values changed as asked."""

    def make(*, nodes: int = 2, layout: dict[str, int] | None = None, **changes: Any) -> Work:
        laid = msgspec.structs.replace(plan.layout, **(layout or {}))
        changed = msgspec.structs.replace(plan, layout=laid)
        count, per_node = placed(laid, nodes, None)
        work = Work(
            plan=changed, file="/here/plan.toml", run="/shared/runs/plays", nodes=count,
            per_node=per_node,
        )  # fmt: skip
        return msgspec.structs.replace(work, **changes)

    return make


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """An environment in which `narrows`, as a command and as a module, is worker.py."""
    worker = Path(__file__).with_name("worker.py")
    module = tmp_path / "stub" / "narrows" / "cli" / "main.py"
    module.parent.mkdir(parents=True)
    for each in (module.parent, module.parent.parent):
        (each / "__init__.py").touch()
    shutil.copyfile(worker, module)
    command = tmp_path / "bin" / "narrows"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{worker}" "$@"\n')
    command.chmod(0o755)
    beside = Path(sys.executable).parent
    path = f"{command.parent}:{beside}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path / "stub")}


@pytest.fixture
def kept() -> Callable[[Path], list[dict[str, Any]]]:
    """What each process of a run said, by rank."""

    def read(run: Path) -> list[dict[str, Any]]:
        found = [json.loads(file.read_text()) for file in run.glob("rank-*.json")]
        return sorted(found, key=lambda each: int(each["RANK"]))

    return read
