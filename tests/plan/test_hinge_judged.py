"""What judging takes beside a model's own loss equals what torch counts: teachers, preferences."""

from __future__ import annotations

from typing import Any
from weakref import finalize

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from narrows.kernels.load import load
from narrows.kernels.loss import Head, Teacher, distillation
from narrows.model.transformer import Transformer
from narrows.plan.layouts import Judged, Layouts, Shapes
from narrows.plan.memory import memory_bytes
from narrows.plan.operations import step_operations
from narrows.spec.layout import Layout
from narrows.spec.model import gpt2, llama

SMALL = gpt2(layers=2, width=64, heads=4, vocabulary=300, context=32)
LARGE = llama(layers=3, width=96, heads=6, kv_heads=2, vocabulary=300, context=64)
TAUGHT = Shapes.of([SMALL], judged=Judged(teacher=LARGE))
PREFERRED = Shapes.of([SMALL], judged=Judged(twice=True))
PLAIN = Shapes.of([SMALL])
LAYOUT = Layout(
    micro_batch=2, accumulation=3, precision="bf16", recompute="full", compile=False,
    kernels="torch", threads=1, loss_chunk=16,
)  # fmt: skip


def products(shapes: Shapes, name: str | None = None) -> float:
    every = step_operations(shapes, Layouts.of(LAYOUT))
    chosen = [each for each in every if each.kind == "gemm" and name in (None, each.name)]
    return sum(float((each.count * each.flop)[0, 0]) for each in chosen)


def test_a_teachers_products_equal_what_torch_counts() -> None:
    with torch.device("meta"), torch.no_grad():
        teacher = Transformer(LARGE, load("torch"))
        tokens_BT = torch.zeros(LAYOUT.micro_batch, SMALL.context, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            teacher.logits(teacher.hidden(tokens_BT))
    counted = counter.get_flop_counts()["Global"].items()
    forward = sum(flop for name, flop in counted if "bmm" not in str(name))
    assert products(TAUGHT, "teacher") == LAYOUT.accumulation * forward
    assert products(TAUGHT) - products(PLAIN) == products(TAUGHT, "teacher")


def test_a_teachers_weights_stand_beside_the_models() -> None:
    plain, taught = (memory_bytes(each, Layouts.of(LAYOUT)) for each in (PLAIN, TAUGHT))
    assert float((taught.weights - plain.weights)[0, 0]) == 2 * LARGE.parameters
    assert float((taught.optimizer - plain.optimizer)[0, 0]) == 0.0


def test_preferences_make_logits_once_more() -> None:
    more = products(PREFERRED) - products(PLAIN)
    tokens = LAYOUT.accumulation * LAYOUT.micro_batch * SMALL.context
    assert more == 2.0 * tokens * SMALL.width * SMALL.vocabulary


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_divergence_has_as_many_logits_at_once_as_planned(dtype: torch.dtype) -> None:
    rows, V, D = 64, 4096, 8
    x_MD, head_VD = torch.randn(rows, D, dtype=dtype), torch.randn(V, D, dtype=dtype)
    teacher = Teacher(torch.randn(rows, D, dtype=dtype), Head(torch.randn_like(head_VD)), 2.0, 0.5)
    targets_M = torch.randint(V, (rows,))
    x_MD.requires_grad_()
    with Alive() as alive:
        distillation(x_MD, Head(head_VD), teacher, targets_M, chunk=rows, scale=1.0)
    layout = msgspec.structs.replace(
        LAYOUT, micro_batch=1, loss_chunk=rows, recompute="none",
        precision="bf16" if dtype == torch.bfloat16 else "fp32",
    )  # fmt: skip
    spec = gpt2(layers=1, width=64, heads=4, vocabulary=V, context=rows)
    planned = memory_bytes(Shapes.of([spec], judged=Judged(teacher=spec)), Layouts.of(layout))
    assert alive.most == pytest.approx(float(planned.logits[0, 0]), rel=0.02)


class Alive(TorchDispatchMode):
    """Bytes of the storages made within that are alive, and the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self._count(found.untyped_storage(), args)
        return found

    def _count(self, storage: torch.UntypedStorage, args: Any) -> None:
        before = {a.untyped_storage()._cdata for a in args if isinstance(a, torch.Tensor)}
        if storage._cdata in self.known | before:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size
