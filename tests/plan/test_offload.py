"""What is offloaded leaves memory by the bytes a trainer would keep, and takes the disk's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.plan.cost import AS_IS, Scales
from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.memory import memory_bytes
from narrows.plan.operation import Transfer
from narrows.plan.operations import step_operations
from narrows.plan.optimizer import AT_HAND_BYTES, check, offloaded_bytes
from narrows.plan.plan import make_plan
from narrows.plan.search import candidates
from narrows.plan.together import step_seconds
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.exchange import EXACT, LocalSteps, PowerSGD
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent
from narrows.spec.machine import Fact, Machine
from narrows.spec.model import llama
from narrows.spec.optimizer import Optimizer
from narrows.spec.units import BytesPerSecond
from tests.layouts import layout_of

from .test_optimizer import KEPT, optimizer, trainer
from .test_refuse import with_hint

MakeMachine = Callable[..., Machine]
SPEC = llama(layers=4, width=768, heads=12, vocabulary=32000, context=512)
READ, WRITTEN = 5e8, 2e9


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    return with_disk(make_machine())


def with_disk(machine: Machine, basis: Any = "measured") -> Machine:
    rates = {
        name: Fact(value=BytesPerSecond(rate), basis=basis, source="a test")
        for name, rate in (("read", READ), ("write", WRITTEN))
    }
    return msgspec.structs.replace(machine, disk=msgspec.structs.replace(machine.disk, **rates))


def layouts(where: Any, settings: Optimizer | None = None, **given: Any) -> Layouts:
    usual = {"micro_batch": 2, "precision": "bf16", **given}
    return Layouts.of(layout_of(**usual, offload=where), optimizer=settings or optimizer())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "bits"), KEPT)
def test_bytes_of_a_parameter_are_what_a_trainer_keeps_of_it(
    name: str, bits: int, precision: Any
) -> None:
    spec = llama(layers=3, width=128, heads=4, vocabulary=512, context=16)
    settings = optimizer(name, bits, ema=None if name == "schedule_free" else 0.99)
    state = trainer(spec, settings, precision=precision).optimizer.state()
    kept = sum(each.nbytes for each in state.values())
    planned = spec.parameters * offloaded_bytes(settings, 2 if precision == "bf16" else 4)
    # Muon keeps more of what is no block's; factors and norms weigh little.
    assert planned == pytest.approx(kept, rel=0.25 if name == "muon" else 0.02)


@pytest.mark.parametrize(("precision", "each"), [("fp32", 8.0), ("bf16", 10.0)])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_on_a_disk_state_and_rests_leave_memory(
    precision: Any, each: float, accumulation: int
) -> None:
    how = {"precision": precision, "accumulation": accumulation}
    there, away = (
        memory_bytes(Shapes.of([SPEC]), layouts(where, **how)).record(0, 0)
        for where in ("none", "disk")
    )
    moved = each * SPEC.parameters - AT_HAND_BYTES
    assert there.peak - away.peak == pytest.approx(moved)
    assert (away.masters, away.optimizer) == (0.0, AT_HAND_BYTES)
    assert away.gradients == there.gradients


def test_what_is_small_is_at_hand_as_a_whole() -> None:
    spec = llama(layers=1, width=64, heads=4, vocabulary=100, context=32)
    found = memory_bytes(Shapes.of([spec]), layouts("disk")).record(0, 0)
    assert found.optimizer == 10.0 * spec.parameters


def test_to_a_host_sums_of_gradients_go_too() -> None:
    found = memory_bytes(Shapes.of([SPEC]), layouts("host", accumulation=4)).record(0, 0)
    there = memory_bytes(Shapes.of([SPEC]), layouts("none", accumulation=4)).record(0, 0)
    assert found.masters == found.optimizer == 0.0 < found.weights == there.weights
    assert there.gradients - found.gradients == pytest.approx(4.0 * SPEC.parameters)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bits", [32, 8])
def test_the_step_takes_the_disks_time_longer(machine: Machine, threads: int, bits: int) -> None:
    shapes, settings = Shapes.of([SPEC]), optimizer("adamw", bits)
    there, away = (
        float(step_seconds(shapes, layouts(where, settings, threads=threads), machine)[0, 0])
        for where in ("none", "disk")
    )
    size = SPEC.parameters * offloaded_bytes(settings, 2)
    assert away - there == pytest.approx(size / READ + size / WRITTEN, rel=1e-6)


def test_processes_share_a_disk(machine: Machine) -> None:
    shapes = Shapes.of([SPEC])
    taken = {
        where: float(step_seconds(shapes, layouts(where, data=2, sharding="none"), machine)[0, 0])
        for where in ("none", "disk")
    }
    size = 10.0 * SPEC.parameters
    assert taken["disk"] - taken["none"] == pytest.approx(
        2 * (size / READ + size / WRITTEN), rel=1e-3
    )


def test_a_hosts_link_and_memory_take_the_optimizers_time(machine: Machine) -> None:
    link = Fact(value=BytesPerSecond(1e10), basis="measured", source="a test")
    device = msgspec.structs.replace(machine.device, host_link=link)
    machine = msgspec.structs.replace(machine, device=device)
    chosen = layouts("host", accumulation=4)
    moved = {
        each.name: float((each.count * each.memory_bytes)[0, 0])
        for each in step_operations(Shapes.of([SPEC]), chosen)
        if isinstance(each.work, Transfer) and each.phase == "optimizer"
    }
    gradients, weights = 4 * 2, 2
    assert moved.pop("offload") == (gradients + weights) * SPEC.parameters
    assert moved.keys() == {"adamw", "accumulate", "clear"}
    shapes = Shapes.of([SPEC])
    taken = [
        float(step_seconds(shapes, chosen, machine, scales)[0, 0])
        for scales in (AS_IS, Scales(link_bandwidth=2.0))
    ]
    assert taken[0] - taken[1] == pytest.approx(SPEC.parameters * 10 / 2e10, rel=1e-6)


JOB = Job(
    name="away",
    model=ModelIntent(layers=4, width=512, heads=8, vocabulary=16384, context=256),
    train=TrainIntent(steps=100, batch_sequences=4),
    layout=LayoutIntent(offload="disk"),
)


def refused(machine: Machine, **layout: Any) -> BadInput:
    job = msgspec.structs.replace(JOB, layout=LayoutIntent(**layout))
    with pytest.raises(BadInput) as caught:
        make_plan(job, machine, None)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_plan_offloads_where_it_is_told_to_and_says_so(machine: Machine) -> None:
    made = make_plan(JOB, machine, None)
    assert made.layout.offload == "disk"
    (row,) = (row for row in made.predicted.rows if row.operation == "offload")
    each = 8.0 if made.layout.precision == "fp32" else 10.0
    assert row.memory_bytes == pytest.approx(2 * each * made.model.parameters)
    assert any(each.resource == "storage" and each.saving > 0.01 for each in made.doubling)
    usual = make_plan(msgspec.structs.replace(JOB, layout=LayoutIntent()), machine, None)
    assert usual.layout.offload == "none"


def test_a_processor_has_no_host_and_a_device_no_disk(machine: Machine) -> None:
    error = refused(machine, offload="host")
    assert "nothing to offload" in error.what and "layout.offload=disk" in str(error.hint)
    device = msgspec.structs.replace(machine.device, kind="cuda")
    cuda = msgspec.structs.replace(machine, device=device)
    assert "not on a disk" in refused(cuda, offload="disk").what
    assert "to its host was not measured" in refused(cuda, offload="host").what


def test_a_disk_that_was_not_measured_is_refused(machine: Machine) -> None:
    error = refused(with_disk(machine, "estimated"), offload="disk")
    assert "was not measured" in error.what and "narrows probe" in str(error.hint)


def test_a_folder_is_for_a_disk(machine: Machine) -> None:
    assert "nothing is offloaded to a disk" in refused(machine, offload_folder="/big").what
    found = candidates(LayoutIntent(offload="disk", offload_folder="/big"), machine, 4, 256)
    assert all(each.layout(0).offload_folder == "/big" for each in found)


@pytest.mark.parametrize(("settings", "how", "exchange", "message"), [
    (optimizer(), {"offload": "disk", "data": 2}, LocalSteps(every=2), "compare masters"),
    (optimizer("muon"), {"offload": "host"}, EXACT, "products are the device's"),
    (optimizer(), {"offload": "host", "tensor": 2}, EXACT, "layout.tensor is 2"),
    (optimizer(), {"offload": "host", "data": 2}, PowerSGD(), "PowerSGD keeps whole"),
])  # fmt: skip
def test_what_excludes_offloading_is_refused(
    settings: Optimizer, how: dict[str, Any], exchange: Any, message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        check(settings, layout_of(**how), exchange, "stop")
    assert caught.value.hint is not None


def test_what_fits_on_a_disk_alone_is_offered_so(make_machine: MakeMachine) -> None:
    eight = msgspec.structs.replace(
        JOB, layout=LayoutIntent(), train=TrainIntent(steps=100, batch_sequences=1, state_bits=8)
    )
    for gigabytes in np.arange(0.12, 0.6, 0.01):
        machine = with_disk(make_machine(gigabytes=float(gigabytes)))
        try:
            make_plan(eight, machine, None)
        except DoesNotFit as error:
            if "layout.offload=disk" not in str(error.hint):
                continue
            made = make_plan(with_hint(eight, error), machine, None)
            assert made.predicted.memory.peak <= gigabytes * 1e9
            assert "the step time)" in str(error.hint)
            return
    raise AssertionError("nowhere offered")


def test_the_disk_holds_what_is_offloaded_beside_checkpoints(machine: Machine) -> None:
    made = make_plan(JOB, machine, None)
    each = 8.0 if made.layout.precision == "fp32" else 10.0
    away = each * made.model.parameters
    checkpoints = 4 * (away + (4.0 if each == 8.0 else 2.0) * made.model.parameters)
    for free, fits in ((checkpoints + away, True), (checkpoints + 0.9 * away, False)):
        fact = msgspec.structs.replace(machine.disk.free, value=type(machine.disk.free.value)(free))
        tight = msgspec.structs.replace(
            machine, disk=msgspec.structs.replace(machine.disk, free=fact)
        )
        if fits:
            assert make_plan(JOB, tight, None)
            continue
        with pytest.raises(DoesNotFit, match="the checkpoints do not fit") as caught:
            make_plan(JOB, tight, None)
        assert "of the optimizer beside them" in caught.value.causes[1]
