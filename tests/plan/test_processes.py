"""Over which axes processes may be spread, and which of them a plan takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from narrows.plan import finetuning
from narrows.plan.plan import make_plan
from narrows.plan.processes import check, counts, named, spreads
from narrows.plan.render import text
from narrows.spec.errors import BadInput
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent
from narrows.spec.machine import Link, Machine
from narrows.spec.model import llama
from narrows.spec.objective import Classify
from narrows.spec.ramp import BatchRamp

from .conftest import fact
from .test_network import link_of
from .test_together import layout_of

MODEL = llama(layers=4, width=64, heads=4, kv_heads=2, vocabulary=96, context=64)


def ways(count: int, batch: int = 16, **given: Any) -> list[dict[str, Any]]:
    return list(spreads(LayoutIntent(**given), MODEL, batch, count))


def planned(machine: Machine, *links: Link, batch: int = 64, **given: Any) -> Any:
    job = Job(
        name="x",
        model=ModelIntent(layers=4, width=256, heads=4, context=256, vocabulary=96),
        train=TrainIntent(steps=9, batch_sequences=batch),
        layout=LayoutIntent(**given),
    )
    return make_plan(job, msgspec.structs.replace(machine, links=links), None)


def test_all_ways_that_the_model_allows_are_tried() -> None:
    found = {(way["data"], way["tensor"], way["pipeline"]) for way in ways(4)}
    assert found == {(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)}
    # Two heads of keys are not divided among four, and four layers not among eight stages.
    assert all(way["pipeline"] * way["interleave"] <= 4 for way in ways(8))


def test_what_is_given_stays_and_the_rest_is_open() -> None:
    found = ways(4, tensor=2)
    assert {way["tensor"] for way in found} == {2}
    assert {(way["data"], way["pipeline"]) for way in found} == {(2, 1), (1, 2)}
    assert {way["sharding"] for way in ways(2, data=2)} == {
        "none", "optimizer", "gradients", "parameters"
    }  # fmt: skip
    assert {way["sharding"] for way in ways(2, data=2, sharding="gradients")} == {"gradients"}
    schedules = {(way["schedule"], way["interleave"]) for way in ways(2, pipeline=2)}
    assert schedules == {("1f1b", 1), ("gpipe", 1), ("1f1b", 2), ("zero_bubble", 2)}
    assert {way["schedule"] for way in ways(2, pipeline=2, schedule="gpipe")} == {"gpipe"}
    assert [way["context"] for way in ways(2, context=2, sharding="none")] == [2]


@pytest.mark.parametrize("given", [{"compile": True}, {"kernels": "native"}])
def test_what_no_zero_bubble_pipeline_runs_is_planned_without_one(
    machine: Machine, given: dict[str, Any]
) -> None:
    alone = planned(machine, link_of(), **given)
    assert alone.layout.processes == 1
    spread = planned(machine, link_of(), processes=2, **given)
    assert spread.layout.schedule != "zero_bubble" or spread.layout.pipeline == 1
    for name, value in given.items():
        assert getattr(spread.layout, name) == value


def test_selective_recompute_is_planned_with_whole_blocks_alone(machine: Machine) -> None:
    for given in ({}, {"processes": 2}):
        found = planned(machine, link_of(rate=1e6), recompute="selective", **given).layout
        assert found.recompute == "selective"
        assert (found.tensor, found.pipeline, found.context, found.expert) == (1, 1, 1, 1)


def test_several_are_considered_where_asked_or_where_a_link_was_measured(machine: Machine) -> None:
    known = msgspec.structs.replace(machine, links=(link_of(), link_of(4, 2)))
    assert counts(LayoutIntent(), machine) == [1]
    assert counts(LayoutIntent(), known) == [1, 2]
    assert counts(LayoutIntent(processes=8), known) == [8]
    crowded = msgspec.structs.replace(link_of(), together=fact(1.23))
    assert counts(LayoutIntent(), msgspec.structs.replace(machine, links=(crowded,))) == [1]
    assert counts(LayoutIntent(data=2, tensor=2), known) == [4]


def test_axes_and_processes_that_do_not_go_together_are_refused(machine: Machine) -> None:
    with pytest.raises(BadInput, match="take 2 processes, and layout.processes is 3"):
        LayoutIntent(processes=3, tensor=2)
    with pytest.raises(BadInput, match="cannot be divided among 7 processes"):
        planned(machine, processes=7)


def test_a_fast_link_makes_data_ranks_and_a_slow_one_stages(machine: Machine) -> None:
    """All ranks send parameters' gradients, stages no more than the stream."""
    fast = planned(machine, link_of(rate=1e11, wait=1e-6), processes=2)
    assert (fast.layout.data, fast.layout.pipeline) == (2, 1)
    assert fast.layout.micro_batch * fast.layout.accumulation == 32
    slow = planned(machine, link_of(2, 2, rate=1e6, wait=1e-6), batch=8, processes=2)
    assert slow.layout.data == 1
    assert slow.bottleneck == "link bandwidth"
    assert "for the network or waiting" in slow.why["layout.data"]
    assert slow.why["network"] == "measured between 2 ranks on 2, 2 ranks"
    waiting = planned(machine, link_of(2, 2, wait=0.2), data=2)
    assert waiting.bottleneck == "link latency"


def test_one_process_stays_where_several_are_no_quicker(machine: Machine) -> None:
    plain = planned(machine)
    assert planned(machine, link_of(rate=1e11, wait=1e-9)).layout == plain.layout
    assert {row.resource for row in plain.doubling}.isdisjoint({"link bandwidth", "link latency"})
    eager = msgspec.structs.replace(link_of(rate=1e11, wait=1e-9), together=None)
    assert planned(machine, eager).layout.processes == 1


def test_memory_is_shared_among_the_processes_of_a_host(machine: Machine) -> None:
    """Four copies of everything do not fit where one does: the plan shards it."""
    one = planned(machine, link_of(4), data=4, sharding="none").predicted.memory.peak
    free = msgspec.structs.replace(
        machine.device.memory.free, value=type(machine.device.memory.free.value)(3.0 * one)
    )
    memory = msgspec.structs.replace(machine.device.memory, free=free)
    device = msgspec.structs.replace(machine.device, memory=memory)
    small = msgspec.structs.replace(machine, device=device)
    found = planned(small, link_of(4), processes=4)
    assert 4 * found.predicted.memory.peak < 3.0 * one


def test_layouts_are_named() -> None:
    assert named(layout_of()) == ""
    assert named(layout_of(data=2, tensor=2)) == "data 2 x tensor 2"
    assert named(layout_of(data=2, sharding="parameters")) == "data 2, parameters sharded"
    assert named(layout_of(pipeline=2, interleave=2)) == "pipeline 2, interleaved 1f1b"
    zero = layout_of(pipeline=2, interleave=2, schedule="zero_bubble")
    assert named(zero) == "pipeline 2, zero bubble"


@pytest.mark.parametrize("changes", [{"pooler": True}, {"encoder_layers": 2}])
def test_what_a_rank_cannot_take_a_part_of_is_planned_on_whole_ranks(
    changes: dict[str, Any],
) -> None:
    spec = msgspec.structs.replace(MODEL, **changes)
    found = {(way["data"], way["tensor"], way["pipeline"])
             for way in spreads(LayoutIntent(), spec, 16, 4)}  # fmt: skip
    assert found == {(4, 1, 1)}
    for axis in ("tensor", "pipeline"):
        with pytest.raises(BadInput, match="knows no") as caught:
            check(LayoutIntent(**{axis: 2}), spec, 16)
        assert f"layout.{axis} = 1" in (caught.value.hint or "")


def test_an_objective_of_whole_models_is_planned_on_whole_ranks() -> None:
    job = Job(name="x", train=TrainIntent(objective=Classify(labels=("a", "b"))))
    laid_out = finetuning.layout_of(job)
    assert (laid_out.tensor, laid_out.pipeline, laid_out.context) == (1, 1, 1)
    assert finetuning.layout_of(Job(name="x")) == LayoutIntent()


def test_a_ramp_is_planned_where_its_noise_is_measured_and_says_its_range(
    machine: Machine,
) -> None:
    job = Job(
        name="x", model=ModelIntent(layers=4, width=256, heads=4, context=256, vocabulary=96),
        train=TrainIntent(
            steps=90, batch_sequences=4, batch_ramp=BatchRamp(most_sequences=40)
        ),
    )  # fmt: skip
    plan = make_plan(job, machine, None)
    assert plan.layout.processes == 1 and plan.layout.accumulation > 1
    assert "4 sequences (1,024 tokens) an update to 32 (8,192)" in plan.why["train.batch_ramp"]
    assert "12 to 90 updates" in plan.why["train.batch_ramp"]
    assert "4 to 32 sequences an update" in " ".join(text(plan).split())
    for layout, what in ((LayoutIntent(micro_batch=4), "only one"),
                         (LayoutIntent(processes=2, data=2), "2 processes")):  # fmt: skip
        with pytest.raises(BadInput, match=what):
            make_plan(msgspec.structs.replace(job, layout=layout), machine, None)
    small = msgspec.structs.replace(job.train, batch_ramp=BatchRamp(most_sequences=7))
    with pytest.raises(BadInput, match="a step has 4 already"):
        make_plan(msgspec.structs.replace(job, train=small), machine, None)
