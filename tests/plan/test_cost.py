from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from narrows.plan.cost import (
    Scales,
    block_factor,
    evaluation_seconds,
    operation_seconds,
    step_seconds,
    sum_seconds,
)
from narrows.plan.curves import Curves
from narrows.plan.layouts import Layouts, Setting, Shapes
from narrows.plan.operations import block_operations, step_operations
from narrows.spec.layout import Layout
from narrows.spec.machine import BlockCurve, BlockPoint, Machine
from narrows.spec.model import gpt2, llama

MakeMachine = Callable[..., Machine]
LLAMA = llama(layers=4, width=256, heads=4, vocabulary=4096, context=256)
GPT2 = gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024)
LAYOUT = Layout(
    micro_batch=4, accumulation=2, precision="bf16", recompute="none", compile=False,
    kernels="native", threads=2, loss_chunk=512,
)  # fmt: skip


def seconds(machine: Machine, scales: Scales | None = None, **changes: object) -> float:
    layouts = Layouts.of(msgspec.structs.replace(LAYOUT, **changes))
    found = step_seconds(Shapes.of([LLAMA]), layouts, machine, scales or Scales())
    assert found.shape == (1, 1)
    return float(found[0, 0])


@given(
    copy=st.floats(1e9, 1e12), more=st.floats(1.0, 100.0), compute=st.floats(1.0, 100.0),
    kernels=st.sampled_from(["torch", "native"]), curves=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_more_of_a_resource_is_never_slower(
    make_machine: MakeMachine, copy: float, more: float, compute: float, kernels: str, curves: bool
) -> None:
    machine = make_machine(copy=copy, curves=curves)
    base = seconds(machine, kernels=kernels)
    assert seconds(machine, Scales(bandwidth=more), kernels=kernels) <= base * (1 + 1e-9)
    assert seconds(machine, Scales(compute=compute), kernels=kernels) <= base * (1 + 1e-9)
    assert seconds(machine, Scales(launch=more), kernels=kernels) <= base * (1 + 1e-9)
    both = seconds(machine, Scales(bandwidth=more, compute=more, launch=more, storage=more),
                   kernels=kernels)  # fmt: skip
    assert both == pytest.approx(base / more, rel=1e-6)


def test_without_curves_a_memory_bound_step_halves_with_twice_the_bandwidth(
    make_machine: MakeMachine,
) -> None:
    starved = make_machine(copy=1e8, curves=False, launch=0.0)
    assert seconds(starved, Scales(bandwidth=2.0)) / seconds(starved) == pytest.approx(
        0.5, abs=0.01
    )


def test_half_the_threads_take_nearly_twice_as_long(machine: Machine) -> None:
    assert 1.9 < seconds(machine, threads=1) / seconds(machine) <= 2.0


def test_recompute_costs_about_a_quarter_more(machine: Machine) -> None:
    assert 1.1 < seconds(machine, recompute="full") / seconds(machine) < 1.4


def test_past_runs_correct_the_kind_they_measured(machine: Machine) -> None:
    learned = msgspec.structs.replace(machine, calibration={"gemm": 2.0})
    more = seconds(learned) - seconds(machine)
    again = seconds(msgspec.structs.replace(machine, calibration={"gemm": 3.0}))
    assert more > 0
    assert again - seconds(machine) == pytest.approx(2 * more)


def test_models_and_layouts_are_evaluated_together(machine: Machine) -> None:
    wide = llama(layers=6, width=384, heads=6, vocabulary=4096, context=256)
    layouts = Layouts.of(LAYOUT)
    three = Layouts(
        setting=layouts.setting, micro_batch=np.array([1.0, 2.0, 4.0]),
        accumulation=np.array([8.0, 4.0, 2.0]), recompute=np.zeros(3), threads=np.full(3, 2.0),
        loss_chunk=np.full(3, 256.0),
    )  # fmt: skip
    found = step_seconds(Shapes.of([LLAMA, wide]), three, machine)
    assert found.shape == (2, 3)
    alone = step_seconds(Shapes.of([wide]), three, machine)
    assert found[1] == pytest.approx(alone[0])


def test_evaluation_takes_about_a_third_of_a_step(machine: Machine) -> None:
    layouts = Layouts.of(msgspec.structs.replace(LAYOUT, accumulation=1))
    forward = evaluation_seconds(Shapes.of([GPT2]), layouts, machine)[0, 0]
    step = step_seconds(Shapes.of([GPT2]), layouts, machine)[0, 0]
    assert 0.2 < forward / step < 0.4


def _with_blocks(machine: Machine, ratio: float) -> Machine:
    """The machine, with blocks measured to take `ratio` of what their operations add up to."""
    points = []
    for width, sequences in ((64, 4), (512, 16)):
        spec = llama(layers=1, width=width, heads=width // 32, vocabulary=1, context=128)
        alone = Layouts.of(LAYOUT)
        alone = replace(alone, micro_batch=np.array([float(sequences)]), accumulation=np.ones(1))
        operations = block_operations(Shapes.of([spec]), alone)
        seconds = float(sum_seconds(operations, alone, machine, Scales())[0, 0])
        points.append(
            BlockPoint(width=width, head_width=32, sequences=sequences, positions=128,
                       seconds=ratio * seconds)
        )  # fmt: skip
    curve = BlockCurve(kind="llama", kernels="native", precision="bf16", points=tuple(points))
    device = msgspec.structs.replace(machine.device, blocks=(curve,))
    return msgspec.structs.replace(machine, device=device)


def test_blocks_measured_whole_scale_what_is_in_blocks(machine: Machine) -> None:
    layouts = Layouts.of(LAYOUT)
    shapes = Shapes.of([LLAMA])
    plain = float(step_seconds(shapes, layouts, machine)[0, 0])
    same = float(step_seconds(shapes, layouts, _with_blocks(machine, 1.0))[0, 0])
    twice = float(step_seconds(shapes, layouts, _with_blocks(machine, 2.0))[0, 0])
    inside = sum(
        float(operation_seconds(each, layouts, machine, Curves.of(machine, layouts.setting))[0, 0])
        for each in step_operations(shapes, layouts)
        if each.in_block
    )
    assert same == pytest.approx(plain)
    assert twice == pytest.approx(plain + inside)


def test_blocks_of_another_kernel_set_say_nothing(machine: Machine) -> None:
    other = replace(
        Layouts.of(LAYOUT), setting=Setting(precision="bf16", kernels="torch", compile=False)
    )
    shapes = Shapes.of([LLAMA])
    assert block_factor(shapes, other, _with_blocks(machine, 2.0)) == pytest.approx(1.0)
