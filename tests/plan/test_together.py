"""A step of several processes: exact where everything is equal and the link is known."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.plan import cost
from narrows.plan.fleet.constants import HOPS_SHOWN
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.predict import Run, predict
from narrows.plan.recipe import Cadence
from narrows.plan.together import _filled, peak_bytes, step, step_seconds
from narrows.spec.layout import Layout
from narrows.spec.machine import Machine
from narrows.spec.model import llama
from narrows.spec.plan import Checkpointing, Evaluation
from tests import layouts

from .test_network import link_of

MODEL = llama(layers=8, width=256, heads=4, vocabulary=512, context=128)
SHAPES = Shapes.of([MODEL])
layout_of = partial(
    layouts.layout_of, micro_batch=2, accumulation=8, precision="bf16", kernels="native",
    loss_chunk=256,
)  # fmt: skip


def quiet(machine: Machine, **given: Any) -> Machine:
    """A link that costs next to nothing, and launches that cost nothing."""
    link = msgspec.structs.replace(link_of(rate=1e15, wait=1e-12, **given), together=None)
    device = msgspec.structs.replace(machine.device, launch=None)
    return msgspec.structs.replace(machine, device=device, links=(link,))


def seconds(layout: Layout, machine: Machine) -> float:
    return float(step_seconds(SHAPES, Layouts.of(layout), machine)[0, 0])


def alone(machine: Machine) -> float:
    layouts = Layouts.of(layout_of(threads=machine.device.threads))
    return float(cost.step_seconds(SHAPES, layouts, machine)[0, 0])


def test_two_data_ranks_share_the_work_of_one_process(machine: Machine) -> None:
    """Each optimizer step is taken twice, and what fully_shard copies comes on top."""
    one, two = alone(machine), seconds(layout_of(data=2, accumulation=4), quiet(machine))
    assert one < two < 1.15 * one


def test_hosts_of_their_own_compute_twice_as_fast(machine: Machine) -> None:
    near = seconds(layout_of(data=2, accumulation=4), quiet(machine))
    far = seconds(layout_of(data=2, accumulation=4, threads=2), quiet(machine, hosts=2))
    assert far == pytest.approx(near / 2, rel=0.05)


def test_a_slow_link_is_what_remains(machine: Machine) -> None:
    slow = msgspec.structs.replace(machine, links=(link_of(rate=1e6),))
    found = step(SHAPES, Layouts.of(layout_of(data=2, accumulation=4)), slow)
    # fp32 gradients are summed once: half of 2 (n-1)/n of them leave each rank.
    assert float(found.seconds[0]) > 4 * MODEL.parameters / 1e6
    assert float(found.telling[0] / found.seconds[0]) > 0.9


@pytest.mark.parametrize(
    ("given", "micros"),
    [
        ({}, 1.0),
        ({"schedule": "gpipe"}, 1.0),
        ({"interleave": 2}, 0.5),
        ({"schedule": "zero_bubble", "interleave": 2}, 1.0 / 6.0),
    ],
)
def test_two_equal_stages_wait_for_their_schedule(
    machine: Machine, given: dict[str, Any], micros: float
) -> None:
    """While a stage waits the other does not get quicker: there is a core for each."""
    layouts = Layouts.of(layout_of(pipeline=2, **given))
    found = step(SHAPES, layouts, quiet(machine))
    each = np.array([stage.micro[0] for stage in found.stages])
    largest, other = each.max(), each.min()
    assert found.running[0] == pytest.approx(8 * largest + micros * other)


@pytest.mark.parametrize(
    ("given", "backend", "hops"),
    [
        ({"schedule": "gpipe"}, "gloo", 16.0),
        ({"schedule": "1f1b"}, "gloo", 17.0),
        ({"schedule": "1f1b"}, "nccl", 16.0),
        ({"interleave": 2}, "gloo", 32.0),
        ({"interleave": 2}, "nccl", 32.0 * HOPS_SHOWN),
    ],
)
def test_a_stage_waits_for_what_it_asks_for(
    machine: Machine, given: dict[str, Any], backend: str, hops: float
) -> None:
    """Eight micro-batches between two stages, there and back, none behind computing."""
    link = msgspec.structs.replace(link_of(rate=1e7, wait=1e-12, hosts=2), backend=backend)
    slow = msgspec.structs.replace(machine, links=(link,))
    found = step(SHAPES, Layouts.of(layout_of(pipeline=2, **given)), slow)
    hop_s = 2 * MODEL.context * MODEL.width * 2 / 1e7
    assert found.hops[0] == pytest.approx(hops * hop_s, rel=0.01)


def test_more_processes_than_cores_use_what_others_leave(machine: Machine) -> None:
    """Of four stages on two cores two are at work, but for the first pass and the last."""
    layouts = Layouts.of(layout_of(pipeline=4, micro_batch=1, accumulation=64))
    found = step(SHAPES, layouts, quiet(machine, ranks=4))
    micros = np.array([stage.micro[0] for stage in found.stages])
    filling = (micros.sum() - micros.max()) / 3 / 2
    assert found.running[0] == pytest.approx(64 * micros.mean() + filling)
    assert found.running[0] < 64 * micros.max()


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(
    ("p", "m", "cores"), [(2, 4, 1), (3, 6, 2), (4, 4, 2), (4, 8, 3), (4, 8, 4)]
)
def test_stages_that_share_cores_take_as_long_as_when_played_through(
    p: int, m: int, cores: int, schedule: str
) -> None:
    """A forward pass takes 1 alone and a backward 2; while all compute, p / cores times that."""
    busy = 3.0 * p / cores
    one = np.array([1.0])
    found = _filled((m * busy * one, m * busy * one), (p - 1) * busy * one, cores / p * one, p)
    assert found[0] == pytest.approx(played(p, m, cores, schedule))


def played(p: int, m: int, cores: int, schedule: str) -> float:
    """Seconds of a pipeline whose stages share cores evenly, event by event."""
    waiting = [orders(stage, p, m, schedule) for stage in range(p)]
    done: set[tuple[str, int, int]] = set()
    left: dict[int, float] = {}
    seconds = 0.0
    while any(waiting):
        for stage, order in enumerate(waiting):
            if order and stage not in left:
                kind, index = order[0]
                near = stage - 1 if kind == "forward" else stage + 1
                if near in (-1, p) or (kind, index, near) in done:
                    left[stage] = 1.0 if kind == "forward" else 2.0
        rate = min(1.0, cores / len(left))
        passed = min(left.values()) / rate
        seconds += passed
        for stage in list(left):
            left[stage] -= passed * rate
            if left[stage] < 1e-9:
                done.add((*waiting[stage].pop(0), stage))
                del left[stage]
    return seconds


def orders(stage: int, p: int, m: int, schedule: str) -> list[tuple[str, int]]:
    """What a stage does, one after the other."""
    early = m if schedule == "gpipe" else min(m, p - stage)
    found = [("forward", index) for index in range(early)]
    for index in range(m):
        found.append(("backward", index))
        if early + index < m:
            found.append(("forward", early + index))
    return found


def test_uneven_stages_go_by_the_slowest(machine: Machine) -> None:
    even, uneven = (
        step(SHAPES, Layouts.of(layout_of(pipeline=2, last_fewer=fewer)), quiet(machine))
        for fewer in (0, 4)
    )
    counts = [len(stage.share.blocks) for stage in uneven.stages]
    assert counts == [6, 2] and float(uneven.seconds[0]) > float(even.seconds[0])
    assert uneven.slowest(0) is uneven.stages[0]


LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"data": 2, "accumulation": 4},
    "sharded": {"data": 2, "accumulation": 4, "sharding": "parameters"},
    "tensor": {"tensor": 2},
    "1f1b": {"pipeline": 2},
    "gpipe": {"pipeline": 2, "schedule": "gpipe"},
    "zero bubble": {"pipeline": 2, "schedule": "zero_bubble", "interleave": 2},
    "ring": {"context": 2},
    "heads": {"context": 2, "exchange": "all_to_all"},
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_sum_to_the_step_and_name_the_link(machine: Machine, kind: str) -> None:
    layout = layout_of(**LAYOUTS[kind])
    known = msgspec.structs.replace(machine, links=(link_of(rate=1e8),))
    cadence = Cadence(
        evaluation=Evaluation(every=1, sequences=1), checkpoints=Checkpointing(every=1, keep=1),
        seconds_evaluating=0.0, seconds_saving=0.0,
    )  # fmt: skip
    run = Run(steps=1, batch_sequences=16, seconds_start=0.0, cadence=cadence)
    ledger = predict(MODEL, layout, known, run)
    assert ledger.step_seconds == pytest.approx(seconds(layout, known), rel=1e-9)
    links = [row for row in ledger.rows if row.kind == "link"]
    assert sum(row.network_bytes for row in links) > 0.0
    assert ledger.seconds_by_kind()["link"] > 0.0
    assert all(row.seconds >= 0.0 for row in ledger.rows)


def test_a_ring_hides_behind_attention_but_for_the_processes_own_part(machine: Machine) -> None:
    """What a wire adds hides as long as queries meet the keys that are there."""
    near, far = link_of(rate=1e10), link_of(2, 2, rate=1e9)
    known = msgspec.structs.replace(machine, links=(near, far))
    found = step(SHAPES, Layouts.of(layout_of(context=2)), known).stages[0]
    told = [each for each in found.told[0] if each.message.hidden]
    assert told and 0.0 < found.covered[0] < sum(each.seconds for each in told)
    assert sum(found.hidden(each, 0) for each in told) == pytest.approx(found.covered[0])


def test_memory_is_of_what_one_process_has(machine: Machine) -> None:
    def memory(**given: Any) -> Any:
        return peak_bytes(SHAPES, Layouts.of(layout_of(**given)), machine).record(0, 0)

    one, P = memory(threads=2), MODEL.parameters
    whole = memory(data=2, accumulation=4)
    assert whole.weights == 2 * 2 * P and whole.optimizer == one.optimizer
    kept = memory(data=2, accumulation=4, sharding="optimizer")
    assert kept.weights == 3 * P and kept.optimizer == one.optimizer / 2
    least = memory(data=2, accumulation=4, sharding="parameters")
    assert P < least.weights < 2 * P and least.gradients < kept.gradients < whole.gradients
    cut = memory(tensor=2)
    assert one.weights / 2 < cut.weights < 0.52 * one.weights
    early, late = memory(pipeline=2), memory(pipeline=2, schedule="gpipe")
    assert early.activations < late.activations
