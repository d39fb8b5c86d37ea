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
from narrows.plan.packed import PackedQuestion, packable, packed_bytes, predict_packed
from narrows.report import served
from narrows.spec.ledger import Row
from narrows.spec.machine import (
    CachedCurve,
    Machine,
    PackedCurve,
    PackedPoint,
    StreamedCurve,
    StreamedPoint,
)
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


def packed(machine: Machine) -> Machine:
    """One that has measured steps of packed matrices, too: weights of 4 bits twice as quick."""
    curves = []
    for bits in (4, 8):
        points = []
        for layers, width in ((2, 384), (14, 768)):
            for sequences, queries, past in (
                (1, 1, 0), (8, 1, 0), (1, 256, 0), (1, 1, 1024), (1, 256, 1024),
            ):  # fmt: skip
                rows, weights = sequences * queries, layers * width**2 * 12
                seconds = weights * (bits * 1e-11 + rows * 1e-12) + rows * past * width * 1e-10
                points.append(PackedPoint(layers=layers, width=width, sequences=sequences,
                                          queries=queries, past=past, seconds=seconds))  # fmt: skip
        curves.append(PackedCurve(bits=bits, points=tuple(points)))
    device = msgspec.structs.replace(machine.device, packed=tuple(curves))
    return msgspec.structs.replace(machine, device=device)


def passed(rows: tuple[Row, ...] | None) -> float:
    assert rows is not None
    return sum(row.seconds for row in rows)


def test_a_token_and_a_prompt_are_those_of_the_answer(machine: Machine) -> None:
    on = here.Served(fleet_here(machine), SMOL, 16.0)
    asked = Question(prompt=100, tokens=2, precision="bf16")
    answer = predict_answer(SMOL, asked, machine)
    assert passed(here.prefill_rows(on, 100.0)) == pytest.approx(answer.first_token_s)
    assert passed(here.decode_rows(on, 1.0, 100.0)) == pytest.approx(answer.per_token_s)
    assert passed(here.decode_rows(on, 8.0, 100.0)) > answer.per_token_s
    # Torch's operations were measured of whole prompts and of single tokens.
    assert here.prefill_rows(on, 100.0, cached=50.0) is None
    assert here.decode_rows(on, 1.0, 100.0, each=3.0) is None


def test_packed_matrices_take_what_the_decoder_of_them_takes(machine: Machine) -> None:
    fleet = fleet_here(packed(machine))
    assert fleet.machine is not None
    on = here.Served(fleet, SMOL, 4.5)
    asked = PackedQuestion(prompt=100, tokens=2, weight_bytes=packed_bytes(SMOL, 4), sequences=8)
    answer = predict_packed(SMOL, asked, fleet.machine)
    assert answer is not None
    assert passed(here.prefill_rows(on, 100.0)) == pytest.approx(answer.first_token_s)
    assert passed(here.decode_rows(on, 8.0, 100.0)) == pytest.approx(answer.per_token_s)
    kept = here.prefill_rows(on, 50.0, cached=50.0)
    assert passed(kept) < 0.9 * passed(here.prefill_rows(on, 100.0))
    wide = here.decode_rows(on._replace(weight_bits=8.0), 1.0, 100.0)
    assert passed(wide) > 1.3 * passed(here.decode_rows(on, 1.0, 100.0))


def test_narrows_serves_here_as_the_decoder_of_packed_matrices(machine: Machine) -> None:
    fleet = fleet_here(packed(machine))
    demand = Demand(
        name="small", model=SMOL, fleet=fleet, engine="narrows", weight_bits=4.5,
        requests=Requests(prompt=100, answer=8, concurrency=4.0),
    )  # fmt: skip
    found = service(demand)
    assert "engine   narrows" in text(found) and "steps measured here" in text(found)
    # It keeps keys and values in no fewer than 8 bits, and takes no gigabytes of its own.
    assert {way.placement.cache_bits for way in (found.best, *found.others)} == {16.0, 8.0}
    assert found.best.held.runtime < 0.2e9 and found.memory_limit == fleet.memory_capacity.value
    assert [row.operation for row in found.decode] == ["products", "attention", "draw", "engine"]
    elsewhere = service(msgspec.structs.replace(demand, engine="vllm"))
    assert elsewhere.best.held.runtime > 2e9 and "engine   vLLM" in text(elsewhere)


def test_serving_here_says_that_it_was_measured(machine: Machine) -> None:
    demand = Demand(
        name="small", model=SMOL, fleet=fleet_here(machine),
        requests=Requests(prompt=100, answer=1, concurrency=1),
    )  # fmt: skip
    found = service(demand)
    assert found.best.placement.weight_bits == 16.0
    assert "steps measured here" in text(found)
    alone = passed(here.prefill_rows(here.Served(demand.fleet, SMOL, 16.0), 100.0))
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
        passed(here.prefill_rows(here.Served(demand.fleet, SMOL, 16.0), 100.0))
    )
    assert [row.operation for row in found.decode][-1] == "engine"
    assert all(row.flop > 0.0 for row in found.decode if row.kind == "gemm")
    # Curves do not say what twice the memory's bandwidth would save of a pass.
    assert found.doubling_decode == found.doubling_prefill == ()
    html = served.html(found)
    assert "holds it back" not in text(found) + html
    assert html.count('data-plot="roofline"') == 4 and "steps measured here" in html


def test_only_what_was_measured_counts(machine: Machine) -> None:
    fleet = fleet_here(machine)
    older = fleet_here(load(Machine, Path(__file__).parents[2] / "cli" / "machine.toml"))
    two_way: ModelSpec = msgspec.structs.replace(SMOL, causal=False)
    on = here.Served(fleet, SMOL, 16.0)
    assert here.measured(on) == machine
    for other in (on._replace(fleet=older), on._replace(spec=two_way),
                  on._replace(weight_bits=8.0), on._replace(ranks=2)):  # fmt: skip
        assert here.measured(other) is None
    odd = llama(layers=2, width=144, heads=3, vocabulary=100, context=64)
    assert not packable(odd) and packable(SMOL)
    narrow = on._replace(fleet=fleet_here(packed(machine)), weight_bits=8.0)
    assert here.measured(narrow) is not None
    assert here.measured(narrow._replace(spec=odd)) is None
