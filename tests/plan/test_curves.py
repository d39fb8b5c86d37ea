from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from narrows.plan.curves import Curves, matmul_peak, precisions
from narrows.plan.layouts import Setting
from narrows.plan.operation import CachedAttention
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachedCurve, CachedPoint, Machine, MatmulPoint
from narrows.spec.units import Bytes

MakeMachine = Callable[..., Machine]
NATIVE = Setting(precision="bf16", kernels="native", compile=False)
TORCH = Setting(precision="bf16", kernels="torch", compile=False)


def curves(machine: Machine, setting: Setting = NATIVE) -> Curves:
    return Curves.of(machine, setting)


def array(*values: float) -> Any:
    return np.array(values)


def test_a_kernel_takes_what_was_measured_at_the_measured_sizes(machine: Machine) -> None:
    for curve in machine.device.kernels:
        if (curve.kernels, curve.precision) == ("native", "bf16"):
            sizes = array(*(point.elements for point in curve.points))
            seconds = [point.forward for point in curve.points]
            found = curves(machine).kernel_seconds(curve.operation, sizes, "forward")
            assert found == pytest.approx(seconds)


def test_between_sizes_a_kernel_takes_between_and_beyond_in_proportion(machine: Machine) -> None:
    at = curves(machine)
    sizes = array(1e5, 3e5, 1e6)
    small, between, large = at.kernel_seconds("norm", sizes, "forward")  # type: ignore[misc]
    assert small < between < large
    largest, beyond = at.kernel_seconds("norm", array(1e7, 3e7), "forward")  # type: ignore[misc]
    assert beyond == pytest.approx(3 * largest)


def test_below_the_smallest_size_a_kernel_nears_one_launch(machine: Machine) -> None:
    (tiny,) = curves(machine).kernel_seconds("norm", array(1.0), "forward")  # type: ignore[misc]
    assert tiny == pytest.approx(3e-6, rel=0.01)


def test_what_was_not_measured_has_no_curve(machine: Machine, make_machine: MakeMachine) -> None:
    assert curves(machine).kernel_seconds("rotary", array(1e6), "forward") is None
    bare = curves(make_machine(curves=False))
    assert bare.attention_seconds(array(1.0), array(64.0), array(64.0), "forward") is None


def test_compiled_curves_are_used_where_compiling_is_planned(machine: Machine) -> None:
    compiled = Setting(precision="bf16", kernels="torch", compile=True)
    size = array(1e7)
    slow = curves(machine, TORCH).kernel_seconds("gelu", size, "forward")
    quick = curves(machine, compiled).kernel_seconds("gelu", size, "forward")
    assert quick is not None and slow is not None
    assert quick[0] < slow[0]


def test_attention_takes_what_was_measured_at_the_measured_sizes(machine: Machine) -> None:
    measured = next(each for each in machine.device.attention if each.kernels == "native")
    for point in measured.points:
        sizes = (array(point.rows), array(point.positions), array(point.head_width))
        found = curves(machine).attention_seconds(*sizes, "backward")
        assert found == pytest.approx([point.backward], rel=1e-3)


def test_twice_the_heads_take_twice_as_long_in_attention(machine: Machine) -> None:
    far = (array(400.0, 800.0), array(4096.0, 4096.0), array(64.0, 64.0))
    found = curves(machine).attention_seconds(*far, "forward")
    assert found is not None
    assert found[1] / found[0] == pytest.approx(2, rel=0.05)


def test_products_follow_the_machines_formula(machine: Machine) -> None:
    seconds = curves(machine).matmul_seconds(
        array(1024.0), array(768.0), array(768.0), "forward"
    )  # fmt: skip
    slowdown = (1 + 20 / 1024) * (1 + 24 / 768) * (1 + 30 / 768)
    assert seconds == pytest.approx([4e-6 + 2 * 1024 * 768 * 768 * slowdown / 0.95e12])


def test_products_are_corrected_by_measured_ones_of_their_direction(machine: Machine) -> None:
    curve = machine.device.matmul[0]
    slow = MatmulPoint(m=768, n=768, k=4096, seconds=0.02, direction="wgrad")
    corrected = msgspec.structs.replace(curve, points=(slow,))
    device = msgspec.structs.replace(machine.device, matmul=(corrected,))
    at = curves(msgspec.structs.replace(machine, device=device))
    size = (array(768.0), array(768.0), array(4096.0))
    assert at.matmul_seconds(*size, "wgrad") == pytest.approx([0.02])
    plain = curves(machine).matmul_seconds(*size, "forward")
    assert at.matmul_seconds(*size, "forward") == pytest.approx(plain)


def test_small_working_sets_are_quicker_than_memory(machine: Machine) -> None:
    rates = curves(machine).bandwidth(array(1e4, 1e6, 1e9))
    assert rates == pytest.approx([160e9, 80e9, 20e9])


def test_a_cache_takes_what_was_measured_among_as_much(machine: Machine) -> None:
    points = tuple(
        CachedPoint(sequences=1, kv_heads=4, group=1, head_width=64, queries=1, keys=keys,
                    seconds=keys * 1e-8 * slower, working_set=Bytes(size))
        for keys in (64, 512) for size, slower in ((1e7, 1.0), (1e8, 3.0))
    )  # fmt: skip
    device = msgspec.structs.replace(
        machine.device, cached=(CachedCurve(precision="bf16", points=points),)
    )
    at = curves(msgspec.structs.replace(machine, device=device), TORCH)
    read = array(1e6, 1e7, 3e7, 1e8, 1e9)
    ones = np.ones_like(read)
    found = at.cached_seconds(CachedAttention(
        sequences=ones, kv_heads=4 * ones, group=ones, head_width=64 * ones, queries=ones,
        keys=64 * ones, working_set=read,
    ))  # fmt: skip
    assert found is not None
    assert found[[0, 1]] == pytest.approx(64e-8) and found[[3, 4]] == pytest.approx(192e-8)
    assert 64e-8 < found[2] < 192e-8


def test_a_machine_without_products_cannot_be_planned_for(machine: Machine) -> None:
    device = msgspec.structs.replace(machine.device, matmul=())
    with pytest.raises(BadInput, match="no bf16 matmul"):
        curves(msgspec.structs.replace(machine, device=device))


def test_precisions_are_those_that_were_measured(machine: Machine) -> None:
    assert precisions(machine) == ("bf16", "fp32")
    assert matmul_peak(machine, NATIVE) == 0.95e12
