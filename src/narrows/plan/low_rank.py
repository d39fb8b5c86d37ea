"""What low-rank products and packed matrices add to a block's operations.

Mirrors adapt/low_rank.py: all A of a matrix are one product, all B another, in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from narrows.plan.layouts import Array, Layouts
from narrows.plan.operation import Operation, kernel, matmul, pointwise
from narrows.plan.trained import Matrix
from narrows.spec.adapter import LowRank

HOST_CALLS = 12
"""Calls of torch beside a matrix's low-rank products, forward and backward: views, the spread of B
and its gradient, what autograd itself does.
"""
_CODE_BYTES = {"int8": 1.0, "nf4": 0.5 + 2.0 / 64.0}


def operations(
    sizes: tuple[Array, Array, Array], matrix: Matrix, adapter: LowRank, count: Array,
    layouts: Layouts,
) -> Iterator[Operation]:  # fmt: skip
    """Beside the product (m,k) @ (k,n) of one frozen matrix."""
    m, n, k = sizes
    if adapter.base is not None:
        yield from _unpacking(n * k, matrix, _CODE_BYTES[adapter.base], count, layouts)
    if not matrix.low:
        return
    P = np.full_like(m, float(matrix.low))
    yield matmul("adapter", "forward", (m, P, k), count, layouts)
    yield matmul("adapter", "forward", (m, n, P), count, layouts)
    yield matmul("adapter", "dgrad", (m, P, n), count, layouts)
    yield matmul("adapter", "wgrad", (n, P, m), count, layouts)
    yield matmul("adapter", "wgrad", (P, k, m), count, layouts)
    if matrix.reads:
        yield matmul("adapter", "dgrad", (m, k, P), count, layouts)
    if adapter.dropout:
        yield from pointwise("dropout", m * k, count, layouts, back=matrix.reads)
    if adapter.rule == "dora":
        for shape in ((n, P, k), (P, P, k), (n, P, P)):
            yield matmul("lengths", "forward", shape, count, layouts)
        value = layouts.setting.value_bytes
        # The norm of each row; the product times lengths, and back what both give to each other.
        yield kernel("lengths", ("forward", "pointwise"), n * k, count, value * (n * k + 2 * m * n))
        yield kernel("lengths", ("backward", "pointwise"), m * n, count, value * 6 * m * n)


def _unpacking(
    values: Array, matrix: Matrix, code_bytes: float, count: Array, layouts: Layouts
) -> Iterator[Operation]:
    """Reads codes and writes the matrix, for the product and again for the input's gradient."""
    moved = values * (code_bytes + layouts.setting.value_bytes)
    yield kernel("unpacked", ("forward", "pointwise"), values, count, moved)
    if matrix.reads:
        yield kernel("unpacked", ("backward", "pointwise"), values, count, moved)
