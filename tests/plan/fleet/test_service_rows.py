from __future__ import annotations

from collections.abc import Callable

import pytest

from narrows.plan.fleet.passes import (
    Prompt,
    Replica,
    cache_bytes_per_token,
    prefill_seconds,
    touched_bytes,
)
from narrows.plan.fleet.service_rows import decode_rows, prefill_rows
from narrows.plan.fleet.serving import Load, Speculation, host_seconds, serve, step_seconds
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.ledger import Row
from narrows.spec.model import ModelSpec

MakeFleet = Callable[..., Fleet]
REPLICAS = [
    Replica(), Replica(tensor=4), Replica(tensor=4, weight_bits=8.0),
    Replica(tensor=4, attention_data=4),
]  # fmt: skip
LOAD = Load(concurrency=12.0, prompt=700.0, answer=100.0)


@pytest.fixture(params=["small", "sparse"])
def work(request: pytest.FixtureRequest) -> Work:
    """A dense model, then one of experts."""
    model: ModelSpec = request.getfixturevalue(request.param)
    return Work.of(model, 1024)


def seconds(rows: tuple[Row, ...]) -> float:
    return sum(row.seconds for row in rows)


@pytest.mark.parametrize("replica", REPLICAS)
def test_rows_make_the_passes(work: Work, replica: Replica, fleet: Fleet) -> None:
    prompt = prefill_rows(work, replica, LOAD, fleet)
    assert seconds(prompt) == pytest.approx(
        prefill_seconds(work, replica, Prompt(700.0), fleet), rel=1e-9
    )
    found = serve(work, replica, LOAD, fleet)
    assert seconds(decode_rows(work, replica, LOAD, 9.0, fleet)) == pytest.approx(
        step_seconds(work, replica, LOAD, 9.0, fleet) + host_seconds(work, replica, LOAD, 9.0),
        rel=1e-9,
    )
    own = decode_rows(work, replica, LOAD, found.running, fleet)
    assert seconds(own) == pytest.approx(found.decode, rel=1e-3)
    watts = {row.kind: row.joules / row.seconds for row in prompt}
    # Idle at 100 W, full at 500: while scores are computed, elements moved, kernels started.
    assert watts["attention"] == pytest.approx(500.0)
    assert watts["pointwise"] == pytest.approx(360.0)
    assert watts["launch"] == pytest.approx(200.0)


def test_bytes_are_what_a_step_reads_and_flop_what_it_computes(
    work: Work, make_fleet: MakeFleet
) -> None:
    device, replica = make_fleet(devices=1), Replica()
    rows = decode_rows(work, replica, LOAD, 3.0, device)
    products = [row for row in rows if row.kind == "gemm"]
    read = sum(row.memory_bytes for row in products)
    assert read == pytest.approx(touched_bytes(work, replica, 3.0), rel=1e-12)
    active = work.spec.product_parameters_active
    assert sum(row.flop for row in products) == pytest.approx(2.0 * 3.0 * active, rel=1e-12)
    (scores,) = (row for row in rows if row.kind == "attention")
    past = 750.0
    assert scores.memory_bytes == pytest.approx(
        3.0 * past * cache_bytes_per_token(work.spec, replica)
    )
    assert scores.flop == pytest.approx(
        3.0 * past * work.spec.layers * 4.0 * work.spec.heads * work.spec.head_width
    )
    # Three tokens leave nothing to compute while weights are read.
    for row in (*products, scores):
        assert row.seconds * 1e12 >= row.memory_bytes


def test_a_prompt_computes_the_models_flop(small: ModelSpec, make_fleet: MakeFleet) -> None:
    work = Work.of(small, 1024)
    rows = prefill_rows(work, Replica(), LOAD, make_fleet(devices=1))
    attention = sum(row.flop for row in rows if row.kind == "attention")
    # The head is of one token alone.
    head = small.vocabulary * small.width
    body = 2.0 * 700.0 * (small.product_parameters_active - head)
    total = sum(row.flop for row in rows)
    assert total - attention == pytest.approx(body + 2.0 * 700.0 * head, rel=1e-9)
    keys = sum(small.keys_mean(700, layer) for layer in range(small.layers))
    assert attention == pytest.approx(4.0 * 700.0 * keys * small.heads * small.head_width)
    assert all(row.memory_bytes > 0.0 for row in rows if row.kind in ("gemm", "pointwise"))


def test_what_ranks_receive_is_told(small: ModelSpec, fleet: Fleet) -> None:
    work = Work.of(small, 1024)
    lone = decode_rows(work, Replica(), LOAD, 4.0, fleet)
    assert not any(row.kind == "link" for row in lone)
    (few,) = (r for r in decode_rows(work, Replica(tensor=4), LOAD, 4.0, fleet) if r.kind == "link")
    # Few tokens are read from all others at once; a prompt's are scattered and gathered.
    each = 2.0 * small.layers * small.width * 2.0
    assert few.network_bytes == pytest.approx(3.0 * 4.0 * each)
    long = Load(concurrency=1.0, prompt=8192.0, answer=1.0)
    (many,) = (r for r in prefill_rows(work, Replica(tensor=4), long, fleet) if r.kind == "link")
    assert many.network_bytes == pytest.approx(1.5 * 8192.0 * each)
    assert many.count == 2.0 * small.layers


@pytest.mark.parametrize("drafted", [False, True])
def test_guesses_are_a_row_of_their_own(small: ModelSpec, fleet: Fleet, drafted: bool) -> None:
    work = Work.of(small, 1024)
    guess = Speculation(accept=0.7, ahead=3, draft=work if drafted else None)
    load = Load(concurrency=4.0, prompt=512.0, answer=64.0, speculation=guess)
    rows = decode_rows(work, Replica(tensor=2), load, 4.0, fleet)
    assert seconds(rows) == pytest.approx(
        step_seconds(work, Replica(tensor=2), load, 4.0, fleet)
        + host_seconds(work, Replica(tensor=2), load, 4.0)
    )
    (guesses,) = (row for row in rows if row.operation == "guesses")
    assert guesses.count == 3.0 and guesses.flop > 0.0 and guesses.memory_bytes > 0.0


def test_without_power_no_energy_is_told(small: ModelSpec, make_fleet: MakeFleet) -> None:
    rows = prefill_rows(Work.of(small, 1024), Replica(), LOAD, make_fleet(power_full=None))
    assert all(row.joules == 0.0 for row in rows)
