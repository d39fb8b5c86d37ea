from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from narrows.plan.layouts import Shapes
from narrows.plan.search import Found, candidates, compile_seconds, memory_limit, search
from narrows.spec.errors import BadInput
from narrows.spec.job import LayoutIntent
from narrows.spec.machine import Compiler, Machine
from narrows.spec.model import llama

MakeMachine = Callable[..., Machine]
MODEL = llama(layers=4, width=256, heads=4, vocabulary=4096, context=256)
SHAPES = Shapes.of([MODEL])


def found(machine: Machine, batch: int = 24, **intent: Any) -> Found:
    return search(SHAPES, candidates(LayoutIntent(**intent), machine, batch, 256), machine)


def test_every_open_choice_is_tried_and_every_fixed_one_kept(machine: Machine) -> None:
    everything = found(machine)
    assert set(everything.column("micro_batch").tolist()) == {1, 2, 3, 4, 6, 8, 12, 24}
    assert set(everything.column("recompute").tolist()) == {0.0, 1.0, 2.0}
    selective = everything.column("recompute") == 2.0
    assert set(everything.column("kernels")[selective].tolist()) == {"torch"}
    assert set(everything.column("compile")[selective].tolist()) == {False}
    assert set(everything.column("precision").tolist()) == {"bf16", "fp32"}
    assert set(everything.column("kernels").tolist()) == {"torch", "native"}
    assert set(everything.column("compile").tolist()) == {True, False}
    fixed = found(machine, micro_batch=6, recompute="full", precision="fp32", compile=False)
    assert fixed.layout(0).accumulation == 4
    for name, value in (("micro_batch", 6), ("recompute", 1.0), ("precision", "fp32")):
        assert set(fixed.column(name).tolist()) == {value}


def test_native_kernels_are_neither_compiled_nor_run_in_fp32(machine: Machine) -> None:
    everything = found(machine)
    native = everything.column("kernels") == "native"
    assert set(everything.column("precision")[native].tolist()) == {"bf16"}
    assert set(everything.column("compile")[native].tolist()) == {False}


def test_what_cannot_go_backward_in_two_passes_is_in_no_zero_bubble_pipeline(
    machine: Machine,
) -> None:
    two = found(machine, pipeline=2, schedule="zero_bubble")
    assert set(two.column("kernels").tolist()) == {"torch"}
    assert set(two.column("compile").tolist()) == {False}
    alone = found(machine, schedule="zero_bubble")
    assert set(alone.column("kernels").tolist()) == {"torch", "native"}
    for given, what in (
        ({"kernels": "native"}, "native kernels would work twice"),
        ({"compile": True}, "compiled blocks cannot"),
    ):
        with pytest.raises(BadInput, match=what) as caught:
            found(machine, pipeline=2, schedule="zero_bubble", **given)
        assert caught.value.hint and "1f1b" in caught.value.hint


def test_columns_and_layouts_agree(machine: Machine) -> None:
    everything = found(machine)
    micro = everything.column("micro_batch")
    for index in range(0, micro.size, 97):
        assert everything.layout(index).micro_batch == micro[index]


def test_the_best_is_the_leanest_of_those_as_quick_as_predictions_tell(
    machine: Machine,
) -> None:
    everything = found(machine)
    best = everything.best(1000)
    assert best is not None
    total = everything.step[0] * 1000 + everything.once[0]
    close = total <= total.min() * 1.02
    assert close[best]
    assert everything.peak[0, best] == everything.peak[0][close].min()


def test_what_does_not_fit_is_not_chosen(make_machine: MakeMachine) -> None:
    roomy = found(make_machine())
    quickest = roomy.best(1)
    assert quickest is not None
    least, wanted = float(roomy.peak.min()), float(roomy.peak[0, quickest])
    tight = found(make_machine(gigabytes=(least + wanted) / 2 / 0.95 / 1e9))
    chosen = tight.best(1)
    assert chosen is not None
    assert tight.peak[0, chosen] <= tight.limit < wanted
    assert found(make_machine(gigabytes=0.5 * least / 1e9)).best(1) is None


def test_compiling_is_worth_it_only_once_it_saves_more_than_it_costs(
    make_machine: MakeMachine,
) -> None:
    machine = make_machine(compile_seconds=5.0)
    torch_only = found(machine, kernels="torch", precision="bf16")
    once = float(compile_seconds(SHAPES, machine)[0, 0])
    assert once == 20.0
    short, long = torch_only.best(10), torch_only.best(100_000)
    assert short is not None and long is not None
    assert not torch_only.layout(short).compile
    assert torch_only.layout(long).compile
    saved = (torch_only.step[0, short] - torch_only.step[0, long]) * 100_000
    assert saved > once


def test_a_compiled_block_is_as_much_quicker_as_was_measured(make_machine: MakeMachine) -> None:
    plain = make_machine()
    device = msgspec.structs.replace(
        plain.device, kernels=tuple(c for c in plain.device.kernels if not c.compiled)
    )
    compiler = msgspec.structs.replace(
        plain.compiler, speedup=msgspec.structs.replace(plain.electricity.overhead, value=1.5)
    )
    machine = msgspec.structs.replace(plain, device=device, compiler=compiler)
    asked: Any = {"kernels": "torch", "precision": "bf16", "micro_batch": 24, "recompute": "none"}
    step = found(machine, **asked).step[0]
    half = step.size // 2
    ratio = step[:half] / step[half:]
    assert ratio.min() > 1.1 and ratio.max() < 1.5


@pytest.mark.parametrize(
    ("intent", "message", "hint"),
    [
        ({"micro_batch": 5}, "24 sequences cannot be cut into micro-batches of 5", "1, 2, 3, 4"),
        ({"threads": 3}, "allows 2", "threads=2"),
        ({"kernels": "native", "compile": True}, "cannot be compiled", "kernels=torch"),
        ({"kernels": "native", "precision": "fp32"}, "cannot be run in fp32", "kernels=torch"),
        ({"kernels": "native", "recompute": "selective"}, "native kernels keep", "kernels=torch"),
        ({"compile": True, "recompute": "selective"}, "compiled blocks keep", "compile=false"),
        ({"tensor": 2, "recompute": "selective"}, "layout.tensor is 2", "recompute"),
    ],
)
def test_layouts_that_cannot_be_are_refused(
    machine: Machine, intent: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(BadInput) as caught:
        found(machine, **intent)
    assert message in caught.value.what
    assert hint in (caught.value.hint or "")


def test_what_the_machine_lacks_is_refused(machine: Machine) -> None:
    bare = msgspec.structs.replace(
        machine,
        kernel_sets=("torch",),
        compiler=Compiler(available=False, reason="no C++ compiler"),
        device=msgspec.structs.replace(machine.device, matmul=machine.device.matmul[1:]),
    )
    with pytest.raises(BadInput, match="native kernels do not run"):
        found(bare, kernels="native")
    with pytest.raises(BadInput, match=r"torch\.compile does not work here: no C\+\+ compiler"):
        found(bare, compile=True)
    with pytest.raises(BadInput, match="no bf16 matmul"):
        found(bare, precision="bf16")
    assert set(found(bare).column("compile").tolist()) == {False}


def test_a_twentieth_of_free_memory_is_kept_back(machine: Machine) -> None:
    assert memory_limit(machine) == pytest.approx(0.95 * 22.5e9)
