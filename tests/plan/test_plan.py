from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from narrows.plan.plan import make_plan
from narrows.spec import record
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent, budget
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan

MakeMachine = Callable[..., Machine]
MakeDataset = Callable[..., Dataset]


def planned(job: Job, machine: Machine, dataset: Dataset | None, *budgets: str) -> Plan:
    return make_plan(msgspec.structs.replace(job, budget=budget(*budgets)), machine, dataset)


def test_a_plan_survives_its_file(
    job: Job, machine: Machine, dataset: Dataset, tmp_path: Path
) -> None:
    plan = planned(job, machine, dataset, "5min")
    for name in ("plan.toml", "plan.json"):
        record.save(plan, tmp_path / name)
        assert record.load(Plan, tmp_path / name) == plan


def test_planning_twice_gives_the_same(job: Job, machine: Machine, dataset: Dataset) -> None:
    assert planned(job, machine, dataset, "5min") == planned(job, machine, dataset, "5min")


@pytest.mark.parametrize("text", ["1min", "5min", "2h", "30 d", "20 kJ", "$0.05", "$100"])
def test_a_plan_fills_its_budget_and_stays_in_it(text: str, job: Job, machine: Machine) -> None:
    total = planned(job, machine, None, text).predicted.total
    asked = budget(text)
    spent = {"time": total.seconds, "energy": total.joules, "money": total.dollars}
    for name, value in spent.items():
        limit = getattr(asked, name)
        if limit is not None:
            assert 0.75 * limit < value <= limit


def test_a_small_text_is_not_read_for_a_month(job: Job, machine: Machine, dataset: Dataset) -> None:
    plan = planned(job, machine, dataset, "30 d")
    assert plan.steps * plan.step_tokens <= 40 * dataset.tokens_train
    assert "40 epochs" in plan.why["train.steps"]


def test_several_budgets_all_hold(job: Job, machine: Machine, dataset: Dataset) -> None:
    plan = planned(job, machine, dataset, "10min", "1M tokens", "$1")
    assert plan.steps * plan.step_tokens <= 1e6
    assert plan.predicted.total.seconds <= 600


def test_every_derived_value_has_its_why(job: Job, machine: Machine, dataset: Dataset) -> None:
    why = planned(job, machine, dataset, "5min").why
    assert set(why) >= {
        "model", "model.context", "model.layers", "model.heads", "train.batch_sequences",
        "train.steps", "optimizer.learning_rate", "schedule.warmup_steps", "layout.precision",
        "layout.kernels", "layout.compile", "layout.recompute", "layout.micro_batch",
        "layout.loss_chunk", "layout.threads",
    }  # fmt: skip


def test_what_is_asked_for_stands_and_has_no_why(job: Job, machine: Machine) -> None:
    fixed = msgspec.structs.replace(
        job,
        model=ModelIntent(layers=3, width=192, heads=3, context=128),
        train=TrainIntent(steps=77, batch_sequences=12, learning_rate=1e-3, warmup_steps=5),
        layout=LayoutIntent(
            micro_batch=4, precision="fp32", recompute="full", compile=False, kernels="torch",
            threads=1, loss_chunk=100,
        ),
    )  # fmt: skip
    plan = make_plan(fixed, machine, None)
    layout = plan.layout
    assert (plan.steps, plan.batch_sequences, plan.context) == (77, 12, 128)
    assert (layout.micro_batch, layout.accumulation, layout.precision) == (4, 3, "fp32")
    assert (layout.recompute, layout.kernels, layout.threads) == ("full", "torch", 1)
    assert (layout.loss_chunk, layout.compile) == (100, False)
    assert not any(key.startswith("layout.") for key in plan.why)
    assert plan.alternatives == ()


def test_native_bf16_is_chosen_where_it_is_quickest(
    job: Job, machine: Machine, dataset: Dataset
) -> None:
    layout = planned(job, machine, dataset, "5min").layout
    assert (layout.kernels, layout.precision, layout.recompute) == ("native", "bf16", "none")


@pytest.mark.parametrize("with_data", [True, False])
def test_a_runner_up_takes_the_memory_that_a_plan_of_it_takes(
    job: Job, machine: Machine, dataset: Dataset, with_data: bool
) -> None:
    text = dataset if with_data else None
    plan = make_plan(job, machine, text)
    other = next(each for each in plan.alternatives if each.layout.processes == 1)
    wanted = LayoutIntent(
        **{name: getattr(other.layout, name) for name in
           ("processes", "micro_batch", "precision", "kernels", "recompute", "loss_chunk")},
        compile=other.layout.compile,
    )  # fmt: skip
    again = make_plan(msgspec.structs.replace(job, layout=wanted), machine, text)
    assert again.predicted.memory.peak == pytest.approx(other.memory_peak)


def test_less_memory_makes_a_smaller_micro_batch(job: Job, make_machine: MakeMachine) -> None:
    sized = msgspec.structs.replace(
        job,
        model=ModelIntent(kind="gpt2", width=768),
        train=TrainIntent(steps=10, batch_sequences=16),
    )
    roomy = make_plan(sized, make_machine(), None)
    tight = make_plan(sized, make_machine(gigabytes=2.5), None)
    assert tight.layout.micro_batch < roomy.layout.micro_batch
    assert tight.predicted.memory.peak < 2.5e9


def test_steps_that_break_the_budget_are_refused_with_those_that_hold(
    job: Job, machine: Machine
) -> None:
    too_long = msgspec.structs.replace(
        job, model=ModelIntent(width=256), budget=budget("1min"),
        train=TrainIntent(steps=100_000, batch_sequences=16),
    )  # fmt: skip
    with pytest.raises(BadInput) as caught:
        make_plan(too_long, machine, None)
    hint = caught.value.hint or ""
    assert caught.value.what == "100000 steps take longer than 1 min of time"
    fitting = record.with_override(record.to_builtins(too_long), hint.removeprefix("--set "))
    assert (
        make_plan(record.from_builtins(Job, fitting), machine, None).predicted.total.seconds <= 60
    )


def test_tokens_asked_for_in_steps_must_fit_a_budget_of_tokens(job: Job, machine: Machine) -> None:
    too_many = msgspec.structs.replace(
        job, model=ModelIntent(width=256), budget=budget("1M tokens"),
        train=TrainIntent(steps=1000, batch_sequences=8),
    )  # fmt: skip
    with pytest.raises(BadInput, match="the budget is 1 M tokens"):
        make_plan(too_many, machine, None)


def test_the_bottleneck_is_what_doubling_saves_most(
    job: Job, machine: Machine, dataset: Dataset
) -> None:
    plan = planned(job, machine, dataset, "5min")
    assert plan.bottleneck == plan.doubling[0].resource == "compute"
    assert {row.resource for row in plan.doubling} == {
        "compute", "memory bandwidth", "memory capacity", "launch overhead", "storage",
    }  # fmt: skip


def test_a_plan_knows_what_it_was_made_from(job: Job, machine: Machine, dataset: Dataset) -> None:
    plan = planned(job, machine, dataset, "5min")
    assert plan.made_from.machine == record.digest(machine)
    assert plan.data is not None and plan.data.digest == plan.made_from.dataset == dataset.digest
    assert make_plan(job, machine, None).data is None
