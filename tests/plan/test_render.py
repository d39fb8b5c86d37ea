from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from narrows.plan.plan import make_plan
from narrows.plan.render import text
from narrows.plan.words import model_line
from narrows.spec.dataset import Dataset
from narrows.spec.job import Job, budget
from narrows.spec.machine import Machine
from narrows.spec.model import llama

MakeMachine = Callable[..., Machine]


@pytest.fixture
def shown(job: Job, machine: Machine, dataset: Dataset) -> str:
    return text(make_plan(msgspec.structs.replace(job, budget=budget("5min")), machine, dataset))


def test_the_answer_holds_all_that_was_asked(shown: str) -> None:
    for part in (
        "plan for plays on bench", "parameters: ", "tokens/s", "epochs", "memory", "energy",
        "g of CO2", "$", "bottleneck: compute", "memory bandwidth", "runner-up layouts", "why",
        "energy estimated", "arXiv:",
    ):  # fmt: skip
        assert part in shown, part


def test_lines_fit_a_terminal(shown: str) -> None:
    assert max(len(line) for line in shown.splitlines()) <= 100


def test_labels_never_run_into_their_content(shown: str) -> None:
    for resource in ("memory bandwidth", "launch overhead", "memory capacity"):
        assert f"  {resource}  " in shown


def test_unknown_power_is_said(job: Job, make_machine: MakeMachine) -> None:
    shown = text(make_plan(job, make_machine(watts=None), None))
    assert "power not known" in shown


def test_a_model_reads_as_one_line() -> None:
    grouped = llama(layers=30, width=576, heads=9, kv_heads=3, vocabulary=49152, context=1024)
    line = model_line(grouped)
    assert line.startswith("135M parameters: 30 layers, width 576, 9 heads of 64 sharing 3 keys")
