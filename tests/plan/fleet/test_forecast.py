from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.render import text
from narrows.plan.fleet.variants import Wanted
from narrows.spec import record
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Forecast
from narrows.spec.job import budget
from narrows.spec.model import ModelSpec
from narrows.spec.units import Bytes, BytesPerSecond

from .conftest import fact

MakeFleet = Callable[..., Fleet]
Ask = Callable[..., Question]


@pytest.fixture(scope="module")
def answer(ask: Ask, make_fleet: MakeFleet) -> Forecast:
    tiny, four = make_fleet(devices=1, gigabytes=1.0), make_fleet(devices=4)
    return forecast(ask(
        budget=budget("1B tokens"), against=(tiny, four, make_fleet(devices=16, formats=())),
        ladder=tuple(make_fleet(devices=1 << power) for power in range(1, 8)),
    ))  # fmt: skip


def test_rows_make_the_step(answer: Forecast) -> None:
    ledger = answer.predicted
    assert sum(row.seconds for row in ledger.rows) == pytest.approx(ledger.step_seconds)
    assert all(row.seconds > 0.0 or row.network_bytes > 0.0 for row in ledger.rows)
    assert ledger.tokens_per_s == pytest.approx(64 * 2048 / ledger.step_seconds)
    kinds = ledger.memory.__struct_fields__
    assert ledger.memory.peak == pytest.approx(
        sum(getattr(ledger.memory, kind) for kind in kinds if kind != "peak")
    )
    assert ledger.memory.peak <= answer.memory_limit == 0.94 * 40e9


def test_utilization_is_model_work_over_what_all_devices_could_do(
    answer: Forecast, small: ModelSpec
) -> None:
    ledger = answer.predicted
    flop = small.flop_per_token * 64 * 2048
    assert ledger.mfu == pytest.approx(flop / (ledger.step_seconds * 16 * 100e12))
    assert 0.2 < ledger.mfu < 0.5


def test_the_whole_run_costs_its_steps(answer: Forecast) -> None:
    ledger, total = answer.predicted, answer.predicted.total
    assert total.steps == math.ceil(1e9 / (64 * 2048)) and total.tokens >= 1e9
    assert total.seconds == pytest.approx(total.steps * ledger.step_seconds)
    assert total.dollars == pytest.approx(total.seconds / 3600 * 2.0 * 16)
    joules = sum(row.joules for row in ledger.rows)
    assert total.joules == pytest.approx(total.steps * joules)
    # Of each kilowatt-hour the building draws one and a half.
    assert total.carbon_grams == pytest.approx(total.joules / 3.6e6 * 1.5 * 500.0)
    assert 100 * 16 < joules / ledger.step_seconds < 500 * 16


def test_the_run_is_the_undisturbed_one_and_what_failures_take(answer: Forecast) -> None:
    run, total, share = answer.run, answer.predicted.total, answer.goodput.share
    assert run is not None and 0.9 < share < 1.0
    assert (run.steps, run.tokens) == (total.steps, total.tokens)
    for name in ("seconds", "joules", "dollars", "carbon_grams"):
        assert getattr(run, name) == pytest.approx(getattr(total, name) / share), name


def test_the_peak_is_told_with_its_moment(ask: Ask, small: ModelSpec) -> None:
    assert forecast(ask(wanted=Wanted(pipeline=1))).peak_at == "loss"
    wanted = Wanted(pipeline=8, tensor=1, context=1, micro_batch=1, recompute="none")
    many = forecast(ask(wanted=wanted))
    assert many.peak_at == "first stage" and many.predicted.memory.logits == 0.0
    wordy = msgspec.structs.replace(small, vocabulary=2**18)
    last = forecast(ask(wanted=wanted, model=wordy))
    assert last.peak_at == "loss" and last.predicted.memory.logits > 0.0
    assert "on the first stage, its forwards in flight" in text(many)
    assert "on the stage of the head, at the loss" in text(last)


def test_without_an_end_the_run_is_one_step(ask: Ask) -> None:
    answer = forecast(ask())
    assert answer.tokens is None and answer.predicted.total.steps == 1
    assert answer.run is None


def test_what_is_not_known_of_a_fleet_costs_nothing(ask: Ask, make_fleet: MakeFleet) -> None:
    answer = forecast(
        ask(fleet=make_fleet(price=None, power_full=None), budget=budget("1B tokens"))
    )
    assert answer.predicted.total.dollars == answer.predicted.total.joules == 0.0
    assert answer.run is not None
    assert (answer.run.joules, answer.run.dollars, answer.run.carbon_grams) == (None, None, None)


def test_the_bottleneck_saves_most_when_doubled(answer: Forecast) -> None:
    savings = [row.saving for row in answer.doubling]
    assert savings == sorted(savings, reverse=True) and savings[-1] >= 0.0
    assert answer.bottleneck == answer.doubling[0].resource == "compute"
    assert {row.resource for row in answer.doubling} == {
        "compute", "memory bandwidth", "memory capacity", "link bandwidth inside a node",
        "network bandwidth", "link latency",
    }  # fmt: skip
    for row in answer.doubling:
        assert row.step_seconds == pytest.approx((1.0 - row.saving) * answer.predicted.step_seconds)


def test_doubled_compute_is_what_a_fleet_of_twice_the_peak_takes(
    ask: Ask, answer: Forecast, fleet: Fleet
) -> None:
    quick = {
        name: msgspec.structs.replace(fact, value=type(fact.value)(2 * fact.value))
        for name, fact in fleet.peak.items()
    }
    kept = {name: getattr(answer.spread, name) for name in Wanted.__struct_fields__}
    twice = forecast(
        ask(fleet=msgspec.structs.replace(fleet, peak=quick), wanted=Wanted(**kept))
    )  # fmt: skip
    (compute,) = (row for row in answer.doubling if row.resource == "compute")
    assert twice.predicted.step_seconds <= compute.step_seconds * (1 + 1e-9)
    assert twice.predicted.step_seconds == pytest.approx(compute.step_seconds, rel=0.05)


def test_a_slow_network_is_the_bottleneck(ask: Ask, make_fleet: MakeFleet) -> None:
    wanted = Wanted(tensor=1, pipeline=1, context=1, micro_batch=1)
    answer = forecast(ask(fleet=make_fleet(network=0.05e9), batch=16, wanted=wanted))
    assert answer.bottleneck == "network bandwidth"


def test_where_memory_binds_twice_of_it_is_a_quicker_layout(
    ask: Ask, make_fleet: MakeFleet
) -> None:
    answer = forecast(ask(fleet=make_fleet(gigabytes=5.0)))
    (memory,) = (row for row in answer.doubling if row.resource == "memory capacity")
    roomy = forecast(ask(fleet=make_fleet(gigabytes=10.0)))
    assert memory.saving > 0.03
    # Variants are tried of what nearly fits: a search of the roomier fleet finds a little more.
    assert memory.step_seconds == pytest.approx(roomy.predicted.step_seconds, rel=0.05)


def test_the_leanest_layout_has_no_use_for_more_memory(ask: Ask) -> None:
    answer = forecast(ask(goal="memory"))
    (memory,) = (row for row in answer.doubling if row.resource == "memory capacity")
    assert memory.saving == 0.0
    assert answer.predicted.memory.peak < forecast(ask()).predicted.memory.peak


@pytest.mark.parametrize(
    ("goal", "value"),
    [("time", "step_seconds"), ("memory", "memory_peak"), ("energy", "joules")],
)
def test_runners_up_are_the_next_best_by_the_goal(ask: Ask, goal: Any, value: str) -> None:
    answer = forecast(ask(goal=goal))
    best = {
        "step_seconds": answer.predicted.step_seconds,
        "memory_peak": answer.predicted.memory.peak,
        "joules": sum(row.joules for row in answer.predicted.rows),
    }[value]
    values = [getattr(option, value) for option in answer.runners_up]
    assert len(values) == 5 and values == sorted(values)
    assert values[0] >= best * (1 - 1e-9)
    ways = [(o.spread.tensor, o.spread.pipeline, o.spread.context) for o in answer.runners_up]
    own = (answer.spread.tensor, answer.spread.pipeline, answer.spread.context)
    assert len({own, *ways}) == 6
    for option in answer.runners_up:
        quicker = option.step_seconds < answer.predicted.step_seconds
        assert ("quicker" in option.verdict) == quicker and "-" not in option.verdict


def test_each_technique_is_changed_alone(answer: Forecast) -> None:
    chosen = msgspec.structs.asdict(answer.spread)
    assert len(answer.techniques) >= 7
    for option in answer.techniques:
        changed = msgspec.structs.asdict(option.spread)
        assert sum(changed[name] != value for name, value in chosen.items()) == 1
        times = option.step_seconds / answer.predicted.step_seconds
        told = f": {times:.2f}x the time, {option.memory_peak / 1e9:.1f} GB"
        assert told in option.verdict
        fits = option.memory_peak <= answer.memory_limit
        assert option.verdict.endswith("does not fit") != fits


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [
        (1, {"tensor": 4, "pipeline": 2}),
        (2, {"pipeline": 4}),
        (64, {"pipeline": 2, "last_fewer": 1}),
    ],
)
def test_no_technique_that_is_searched_beats_the_best(
    ask: Ask, batch: int, wanted: dict[str, Any]
) -> None:
    answer = forecast(ask(batch=batch, wanted=Wanted(**wanted)))
    searched = ("recompute", "shard", "parameters", "contexts", "placed", "1f1b", "zero_bubble")
    options = [o for o in answer.techniques if o.verdict.startswith(searched)]
    assert len(options) > 4
    for option in options:
        assert option.step_seconds >= 0.999 * answer.predicted.step_seconds, option.verdict


@pytest.mark.parametrize("tensor", [1, 2])
def test_only_tensor_ranks_can_do_without_sequence_parallelism(ask: Ask, tensor: int) -> None:
    answer = forecast(ask(wanted=Wanted(tensor=tensor)))
    without = [o for o in answer.techniques if o.verdict.startswith("no sequence parallelism")]
    assert len(without) == tensor - 1


def test_too_small_a_fleet_says_what_is_too_large(ask: Ask, make_fleet: MakeFleet) -> None:
    with pytest.raises(DoesNotFit) as caught:
        forecast(ask(fleet=make_fleet(devices=2, gigabytes=4.8)))
    refusal = caught.value
    assert refusal.exit_code == 3
    assert refusal.what.startswith("the job does not fit: ")
    assert "4.5 GB free on each made-up" in refusal.what
    (causes,) = refusal.causes
    assert causes.startswith("runtime 3.0 GB, optimizer ") and causes.count(" GB") == 3


def test_an_optimizer_on_the_host_wants_its_memory(ask: Ask, make_fleet: MakeFleet) -> None:
    wanted = Wanted(offload="host")
    links = {"host_link": fact(BytesPerSecond(20e9))}

    def asked(**changes: Any) -> Forecast:
        return forecast(ask(wanted=wanted, fleet=make_fleet(**links, **changes)))

    (unknown,) = (each for each in asked().answers if each.name == "memory of a host")
    assert unknown.source.endswith("is not known")
    (known,) = (
        each for each in asked(host_memory=fact(Bytes(64e9))).answers
        if each.name == "memory of a host"
    )  # fmt: skip
    assert "64 GB" in known.source and known.value == unknown.value
    with pytest.raises(DoesNotFit, match="does not fit the host") as caught:
        asked(host_memory=fact(Bytes(1e9)))
    assert caught.value.hint is not None and "disk" in caught.value.hint


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_forecast_survives_being_written(answer: Forecast, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"forecast.{suffix}"
    record.save(answer, path)
    assert record.load(Forecast, path) == answer


def test_what_cannot_be_laid_out_is_bad_input(ask: Ask) -> None:
    with pytest.raises(BadInput, match="16 heads"):
        forecast(ask(wanted=Wanted(tensor=5)))
