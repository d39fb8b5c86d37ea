"""torch's products in bf16 as this process has them, and ours by themselves, against fp64."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from narrows.kernels import products
from narrows.kernels.build import AVX2, level, obstacle
from narrows.kernels.load import load
from narrows.kernels.native import call

needs_native = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))
needs_avx2 = pytest.mark.skipif(
    obstacle() is not None or level() is not AVX2, reason="torch's products are quick here"
)

SHAPES = [(1, 1, 1), (7, 17, 33), (100, 50, 131), (5, 400, 64), (200, 272, 300), (6, 16, 257)]


def operand(rows: int, columns: int, *, turned: bool) -> Tensor:
    values = torch.randn(columns, rows) if turned else torch.randn(rows, columns)
    return values.bfloat16().t() if turned else values.bfloat16()


def holds(found: Tensor, want: Tensor) -> bool:
    """Equal but for the rounding to bf16 and fp32's of sums near nothing."""
    return torch.allclose(found.double(), want, rtol=2**-8, atol=1e-4)


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turned", list(itertools.product((False, True), repeat=2)))
def test_a_product_is_what_fp64_says(
    shape: tuple[int, int, int], turned: tuple[bool, bool]
) -> None:
    m, n, k = shape
    a, b = operand(m, k, turned=turned[0]), operand(k, n, turned=turned[1])
    whole = a.double() @ b.double()
    out, added = torch.zeros(m, n + 3, dtype=torch.bfloat16)[:, :n], torch.randn(m, n).bfloat16()
    assert products._product(a, b, None, out) is out
    assert holds(out, whole)
    assert holds(products._product(a, b, added[0], None), whole + added[0].double())
    assert products._product(a, b, added, added) is added
    assert holds(products._product(a, b, out, None), whole + out.double())


@needs_native
def test_rows_of_one_value_and_columns_apart_are_multiplied() -> None:
    a = torch.randn(4, 1).bfloat16().expand(4, 64)
    b = torch.randn(128, 40).bfloat16()[::2, ::2]
    assert holds(products._product(a, b, None, None), a.double() @ b.double())


@needs_native
def test_no_value_depends_on_how_many_threads_there_are() -> None:
    a, b = operand(300, 200, turned=False), operand(200, 500, turned=True)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(products._product(a, b, None, None))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_is_not_ours_is_left_to_torch() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert products._product(a, b, None, None) is None
    a, b = a.bfloat16(), b.bfloat16()
    assert products._product(a, a, None, None) is None
    assert products._product(a[:0], b, None, None) is None
    assert products._product(a, b, torch.zeros(3, 1, dtype=torch.bfloat16), None) is None
    assert products._product(a, b, torch.zeros(5), None) is None
    assert products._product(a, b, None, torch.zeros(5, 3, dtype=torch.bfloat16).t()) is None
    assert products.asked("addmm", b[0], a, b, beta=2, alpha=1) is None


@needs_avx2
def test_whoever_asks_torch_gets_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    load("torch")
    asked: list[str] = []

    def noted(name: str, *rest: object) -> object:
        asked.append(name)
        return call(name, *rest)

    monkeypatch.setattr(products, "call", noted)
    x, w = torch.randn(2, 6, 8, dtype=torch.bfloat16, requires_grad=True), torch.randn(5, 8)
    weight, bias = w.bfloat16().requires_grad_(), torch.zeros(5, dtype=torch.bfloat16)
    torch.nn.functional.linear(x, weight, bias).sum().backward()
    assert asked == ["matmul"] * 3
    torch.mm(x.detach()[0], weight.detach().t(), out=torch.empty(6, 5, dtype=torch.bfloat16))
    torch.zeros(6, 5, dtype=torch.bfloat16).addmm_(x.detach()[0], weight.detach().t())
    assert asked == ["matmul"] * 5
    assert holds(weight.grad, x.detach().double().sum((0, 1)).expand(5, 8))


@needs_avx2
def test_fp32_and_wrong_shapes_are_torchs_as_before() -> None:
    load("torch")
    a, b = torch.randn(30, 40), torch.randn(40, 50)
    assert torch.allclose(a @ b, (a.double() @ b.double()).float(), atol=1e-4)
    assert torch.equal(torch.addmm(b[0], a, b, beta=0.0), a @ b)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        a.bfloat16() @ a.bfloat16()


def test_nothing_is_said_of_what_is_replaced() -> None:
    code = "from narrows.kernels.load import load; load('torch')"
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True
    )
    assert "overrid" not in done.stderr.lower()
