from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from narrows.hardware.fleet import fleet_here
from narrows.plan.answer import Question, predict_answer
from narrows.plan.fleet import here
from narrows.plan.fleet.service import service
from narrows.plan.fleet.service_render import text
from narrows.plan.fleet.ways import Demand
from narrows.report import served
from narrows.spec.machine import CachedCurve, Machine, StreamedCurve, StreamedPoint
from narrows.spec.model import ModelSpec, llama
from narrows.spec.record import load
from narrows.spec.service import Requests
from narrows.spec.units import Bytes

SMOL = llama(layers=4, width=256, heads=4, kv_heads=2, vocabulary=1000, context=512)


@pytest.fixture
def machine() -> Machine:
    known = load(Machine, Path(__file__).parents[2] / "cli" / "machine.toml")
    points = (StreamedPoint(m=1, n=768, k=768, working_set=Bytes(1e8), seconds=6e-5),)
    device = msgspec.structs.replace(
        known.device, streamed=(StreamedCurve(precision="bf16", points=points),),
        cached=(CachedCurve(precision="bf16", points=()),),
    )  # fmt: skip
    return msgspec.structs.replace(known, device=device)


def test_a_token_and_a_prompt_are_those_of_the_answer(machine: Machine) -> None:
    asked = Question(prompt=100, tokens=2, precision="bf16")
    answer = predict_answer(SMOL, asked, machine)
    assert here.prefill_seconds(SMOL, 100.0, machine) == pytest.approx(answer.first_token_s)
    assert here.decode_seconds(SMOL, 1.0, 100.0, machine) == pytest.approx(answer.per_token_s)
    assert here.decode_seconds(SMOL, 8.0, 100.0, machine) > answer.per_token_s


def test_serving_here_says_that_it_was_measured(machine: Machine) -> None:
    demand = Demand(
        name="small", model=SMOL, fleet=fleet_here(machine),
        requests=Requests(prompt=100, answer=1, concurrency=1),
    )  # fmt: skip
    found = service(demand)
    assert found.best.placement.weight_bits == 16.0
    assert "curves measured here" in text(found)
    alone = here.prefill_seconds(SMOL, 100.0, machine)
    # Beside the pass: what a server takes for a request.
    assert alone < found.best.first_token.mean < 4 * alone + found.best.per_token.mean + 0.2


def test_rows_here_are_the_measured_operations(machine: Machine) -> None:
    demand = Demand(
        name="small", model=SMOL, fleet=fleet_here(machine),
        requests=Requests(prompt=100, answer=8, concurrency=2.0),
    )  # fmt: skip
    found = service(demand)
    assert {"qkv", "up", "down", "head"} <= {row.operation for row in found.prefill}
    assert sum(row.seconds for row in found.prefill) == pytest.approx(
        here.prefill_seconds(SMOL, 100.0, machine)
    )
    assert [row.operation for row in found.decode][-1] == "engine"
    assert all(row.flop > 0.0 for row in found.decode if row.kind == "gemm")
    # Curves do not say what twice the memory's bandwidth would save of a pass.
    assert found.doubling_decode == found.doubling_prefill == ()
    html = served.html(found)
    assert "holds it back" not in text(found) + html
    assert html.count('data-plot="roofline"') == 4 and "curves measured here" in html


def test_only_what_was_measured_counts(machine: Machine) -> None:
    fleet = fleet_here(machine)
    older = fleet_here(load(Machine, Path(__file__).parents[2] / "cli" / "machine.toml"))
    two_way: ModelSpec = msgspec.structs.replace(SMOL, causal=False)
    assert here.measured(fleet, SMOL, 16.0, 1) == machine
    for other in ((older, SMOL, 16.0, 1), (fleet, two_way, 16.0, 1), (fleet, SMOL, 8.0, 1),
                  (fleet, SMOL, 16.0, 2)):  # fmt: skip
        assert here.measured(*other) is None
