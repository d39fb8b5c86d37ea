"""A run that has begun may change its layout; what is learned stays."""

from __future__ import annotations

import msgspec
import pytest

from narrows.plan.change import changed, continued, described
from narrows.plan.plan import make_plan
from narrows.plan.processes import fewer
from narrows.spec.errors import BadInput
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan

from .test_network import link_of


@pytest.fixture
def plan(machine: Machine) -> Plan:
    job = Job(
        name="x", model=ModelIntent(layers=2, width=64, heads=4, context=64, vocabulary=96),
        train=TrainIntent(steps=9, batch_sequences=16),
        layout=LayoutIntent(data=2, sharding="none", micro_batch=4, threads=1),
    )  # fmt: skip
    return make_plan(job, machine, None)


def sequences(plan: Plan) -> int:
    return plan.layout.batches * plan.layout.micro_batch * plan.layout.accumulation


def test_the_batch_stays_whatever_the_layout(plan: Plan, machine: Machine) -> None:
    for assignments in (["layout.data=1"], ["layout.data=8"], ["layout.data=1", "layout.tensor=4"]):
        new = changed(plan, machine, assignments)
        assert sequences(new) == plan.batch_sequences == 16
        assert new.layout.processes != plan.layout.processes
        assert new.optimizer == plan.optimizer and new.steps == plan.steps


def test_another_micro_batch_is_predicted_again(plan: Plan, machine: Machine) -> None:
    new = changed(plan, machine, ["layout.micro_batch=1"])
    assert (new.layout.micro_batch, new.layout.accumulation) == (1, 8)
    assert new.predicted.memory.peak < plan.predicted.memory.peak


def test_so_many_processes_are_data_ranks_of_the_same_batch(plan: Plan, machine: Machine) -> None:
    linked = msgspec.structs.replace(machine, links=(link_of(4, rate=1e7),))
    new = changed(plan, linked, ["layout.processes=4"])
    assert new.layout.data == 4 and sequences(new) == 16
    assert new.predicted.seconds_by_kind()["link"] > 0.0
    assert new.why["network"] == "measured between 4 ranks on 1, 4 ranks"
    alone = changed(new, linked, ["layout.processes=1"])
    assert alone.layout.processes == 1 and "network" not in alone.why
    with pytest.raises(BadInput, match="take 4 processes, and layout.processes is 6"):
        changed(plan, linked, ["layout.tensor=4", "layout.processes=6"])


def test_what_would_change_the_numbers_is_refused(plan: Plan, machine: Machine) -> None:
    for key in ("layout.precision=fp32", "train.learning_rate=0.1", "seed=3"):
        with pytest.raises(BadInput, match="is settled"):
            changed(plan, machine, [key])
    with pytest.raises(BadInput, match="4 heads cannot be divided among 3"):
        changed(plan, machine, ["layout.tensor=3"])
    with pytest.raises(BadInput, match="no multiple of micro-batches of 3"):
        changed(plan, machine, ["layout.micro_batch=3"])


def test_the_way_with_spikes_may_change(plan: Plan, machine: Machine) -> None:
    new = changed(plan, machine, ["train.on_spike=skip"])
    assert new == msgspec.structs.replace(plan, on_spike="skip")


def test_processes_that_the_axes_do_not_divide_are_data_ranks_alone(
    plan: Plan, machine: Machine
) -> None:
    linked = msgspec.structs.replace(machine, links=(link_of(4, rate=1e7),))
    cut = changed(plan, linked, ["layout.tensor=2", "layout.data=1"])
    one = changed(cut, linked, ["layout.processes=1"])
    assert one.layout.processes == one.layout.tensor == 1 and sequences(one) == 16


def test_a_run_goes_on_as_another_plan_is_laid_out(plan: Plan, machine: Machine) -> None:
    other = changed(plan, machine, ["layout.data=1", "layout.micro_batch=2"])
    new = continued(plan, other, machine)
    assert new.layout == other.layout and new.steps == plan.steps
    longer = msgspec.structs.replace(other, steps=40)
    with pytest.raises(BadInput, match="began with another steps than the plan says"):
        continued(plan, longer, machine)
    narrow = msgspec.structs.replace(other.layout, kernels="torch", precision="bf16")
    with pytest.raises(BadInput, match=r"another layout\."):
        continued(plan, msgspec.structs.replace(other, layout=narrow), machine)


def test_half_the_processes_do_twice_as_much(plan: Plan) -> None:
    layout = plan.layout
    half = fewer(layout)
    assert half is not None
    assert (half.data, half.accumulation, half.threads) == (
        1, 2 * layout.accumulation, 2 * layout.threads
    )  # fmt: skip
    assert fewer(half) is None
    assert described(layout) == "data 2, 4 x 2 sequences each"
    spread = msgspec.structs.replace(layout, data=4, tensor=2, expert=8)
    smaller = fewer(spread)
    assert smaller is not None and smaller.expert == 4
