from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from narrows.model.presets import preset
from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.render import described, text
from narrows.plan.fleet.variants import Wanted
from narrows.spec.fleet import Fleet, Spread
from narrows.spec.job import budget
from narrows.spec.model import ModelSpec
from narrows.spec.units import Grams, Seconds

MakeFleet = Callable[..., Fleet]
Show = Callable[..., str]


@pytest.fixture(scope="module")
def show(small: ModelSpec, fleet: Fleet) -> Show:
    """The text of a forecast: by default of the small model over the fleet."""

    def shown(**changes: Any) -> str:
        asked = {"name": "small", "model": small, "fleet": fleet, "batch": 64}
        return text(forecast(Question(**{"wanted": Wanted(), **asked, **changes})))

    return shown


@pytest.fixture(scope="module")
def shown(show: Show, make_fleet: MakeFleet) -> str:
    return show(budget=budget("1T tokens"), against=(make_fleet(devices=1, gigabytes=1.0),))


def test_the_answer_holds_all_that_was_asked(shown: str) -> None:
    for part in (
        "small on 16 x made-up, 4 nodes of 4\n", "  model    428M parameters: 8 layers",
        "64 sequences of 2,048",
        "  layout   data ", "best for time of", "tokens/s", "of the peak", "  power ", "a device",
        "  failures one in", "  total    1 T tokens in", "$", "t of CO2", "where a step goes",
        "products ", "memory of the fullest device", "optimizer ", "bottleneck: compute",
        "network bandwidth ", "runner-up layouts", "one technique changed", "recompute full: ",
        "fastest for its memory", "elsewhere", "does not fit", "peak bf16: 100 TFLOP/s",
        "(assumed, made up for a test)", "wire: 10 GB/s", "reach: made up for a test",
    ):  # fmt: skip
        assert part in shown, part


def test_rates_and_totals_are_those_of_the_ledger(small: ModelSpec, fleet: Fleet) -> None:
    question = Question(
        name="small",
        model=small,
        fleet=fleet,
        batch=64,
        wanted=Wanted(),
        budget=budget("1T tokens"),
    )
    answer = forecast(question)
    ledger, shown = answer.predicted, text(answer)
    watts = sum(row.joules for row in ledger.rows) / ledger.step_seconds
    flop = small.flop_per_token * ledger.tokens_per_s / 16
    total, share = ledger.total, answer.goodput.share
    for part in (
        f"{ledger.tokens_per_s:,.0f} tokens/s, {ledger.tokens_per_s / 16:,.0f} a device; "
        f"{flop / 1e12:.3g} TFLOP/s of",
        f"{watts / 1e3:.3g} kW, {watts / 16:.3g} W a device",
        f"steps: {total.seconds / share / 86_400:.3g} d,", f"${total.dollars / share:,.0f}",
        f"{total.joules / share / 3.6e9:.3g} MWh",
        f"{Grams(total.carbon_grams / share).text()} of CO2",
        f"{Seconds(ledger.step_seconds).text()}, ",
    ):  # fmt: skip
        assert part in " ".join(shown.split()), part


def test_lines_fit_a_terminal(shown: str, show: Show, fleet: Fleet) -> None:
    assert max(len(line) for line in shown.splitlines()) <= 100
    wordy = msgspec.structs.replace(
        fleet.memory_bandwidth, source="a source whose title goes on for quite some words " * 3
    )
    model = msgspec.structs.replace(preset("deepseek-v3").spec, context=4096)
    long = show(
        name="deepseek-v3", model=model, batch=4096,
        fleet=msgspec.structs.replace(
            fleet, memory_bandwidth=wordy, memory_capacity=msgspec.structs.replace(
                fleet.memory_capacity, value=type(fleet.memory_capacity.value)(4e12)
            ),
        ),
    )  # fmt: skip
    assert max(len(line) for line in long.splitlines()) <= 100
    assert "quite some words a source" in " ".join(long.split())


def test_shares_of_the_step_and_of_memory_come_largest_first(shown: str) -> None:
    for title in ("where a step goes", "memory of the fullest device"):
        block = next(each for each in shown.split("\n\n") if each.startswith(title))
        rows = block.splitlines()[1:]
        shares = [float(row[32:].split("%")[0]) for row in rows]
        assert len(shares) > 2 and shares == sorted(shares, reverse=True)
        assert 95.0 < sum(shares) < 100.5


def test_what_was_not_asked_or_is_not_known_is_left_out(show: Show, make_fleet: MakeFleet) -> None:
    bare = show(fleet=make_fleet(price=None, power_full=None))
    for part in ("  total ", "  power ", "price", "elsewhere", "Wh"):
        assert part not in bare, part
    ended = show(fleet=make_fleet(price=None), budget=budget("1T tokens"))
    assert "  total " in ended and "$" not in ended.split("where a step goes")[0]


def test_failures_that_leave_no_time_are_said(show: Show, make_fleet: MakeFleet) -> None:
    many = show(
        fleet=make_fleet(devices=2**20), batch=2**20, budget=budget("1T tokens"),
        wanted=Wanted(tensor=1, pipeline=1, context=1, micro_batch=1),
    )  # fmt: skip
    assert "leaves 0.0% of the time" in many
    assert "  total    never: failures leave no time" in many


@pytest.mark.parametrize(
    ("spread", "words"),
    [
        (Spread(sharding="none"), "data 1, micro-batch 1 x 1, nothing sharded"),
        (
            Spread(tensor=2, interleave=2),
            "data 1, tensor 2, 2 pieces a stage, micro-batch 1 x 1, optimizer sharded",
        ),
        (
            Spread(data=2, replicas=3, tensor=4, pipeline=5, context=6, expert=7, interleave=8,
                   micro_batch=9, accumulation=10, sharding="parameters", recompute="full"),
            "data 2 x 3 copies, tensor 4, pipeline 5, context 6, expert 7, 8 pieces a stage, "
            "micro-batch 9 x 10, parameters sharded, recompute full",
        ),
    ],
)  # fmt: skip
def test_a_layout_reads_as_one_line(spread: Spread, words: str) -> None:
    assert described(spread) == words
