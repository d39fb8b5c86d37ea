"""An operation of a step, how it is costed, and how the usual ones are made.

Sizes are arrays [models, layouts], so that a whole search is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from narrows.plan.layouts import Array, Layouts
from narrows.plan.trained import WHOLE, Matrix
from narrows.spec.ledger import Kind, Phase
from narrows.spec.machine import Direction as ProductDirection

Direction = Literal["forward", "backward"]


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix product (m,k) @ (k,n), its operands lying in memory as `direction` has them."""

    m: Array
    n: Array
    k: Array
    direction: ProductDirection


class StreamedProduct(msgspec.Struct, frozen=True, kw_only=True):
    """A forward product of few rows, whose weights are among `working_set` bytes read in turn."""

    m: Array
    n: Array
    k: Array
    working_set: Array


class CausalAttention(msgspec.Struct, frozen=True, kw_only=True):
    """Attention of `rows` = B·N heads over `positions`, never writing the scores to memory."""

    rows: Array
    positions: Array
    head_width: Array
    direction: Direction


class CachedAttention(msgspec.Struct, frozen=True, kw_only=True):
    """Attention of `queries` new positions of `sequences` to `keys`, theirs included, among
    `working_set` bytes that are read in turn.
    """

    sequences: Array
    kv_heads: Array
    group: Array
    head_width: Array
    queries: Array
    keys: Array
    working_set: Array


class Pointwise(msgspec.Struct, frozen=True, kw_only=True):
    """A memory-bound operation of `kernels.interface.OPERATIONS` on `elements`."""

    operation: str
    elements: Array
    direction: Direction


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Work of the host alone: finding and starting an operation."""


Way = Literal["read", "write", "link", "host"]
"""Of bytes that no device's own memory moves: from the disk or to it, between a device and its
host's memory, or within that.
"""


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on their way, which `sharers` have at once."""

    way: Way = "read"
    sharers: int = 1


Work = Product | StreamedProduct | CausalAttention | CachedAttention | Pointwise | Launch | Transfer


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`count` calls a step, each of `flop` and `memory_bytes`, arrays [models, layouts].

    What is `in_block` is what a layout may compile or recompute.
    """

    name: str
    phase: Phase
    kind: Kind
    count: Array
    flop: Array
    memory_bytes: Array
    work: Work
    in_block: bool = False


# Values moved per element, forward and backward, by kernels that read every operand and write every
# result once. norm adds to the stream first: it reads x and delta and writes their sum and its
# norm; gelu's and swiglu's backward make the activation again beside the gradient.
VALUES_MOVED: dict[str, tuple[float, float]] = {
    "norm": (4, 4),
    "gelu": (2, 4),
    "swiglu": (3, 6),
    "rotary": (6, 6),
    "dropout": (2, 2),
    "embedding": (2, 2),
    "positions": (2, 1),
    "column_sum": (1, 0),
    "bias": (2, 0),
    "cross_entropy": (2, 0),
}


def product(
    name: str, sizes: tuple[Array, Array, Array], count: Array, layouts: Layouts,
    learns: Matrix = WHOLE,
) -> Iterator[Operation]:  # fmt: skip
    """y_mn = x_mk @ w_kn forward; dx = dy @ wᵀ and dw = xᵀ @ dy backward, where wanted."""
    m, n, k = sizes
    yield matmul(name, "forward", (m, n, k), count, layouts)
    if learns.reads:
        yield matmul(name, "dgrad", (m, k, n), count, layouts)
    if learns.weight:
        yield matmul(name, "wgrad", (n, k, m), count, layouts)


def matmul(
    name: str, direction: ProductDirection, sizes: tuple[Array, Array, Array], count: Array,
    layouts: Layouts,
) -> Operation:  # fmt: skip
    """One product (m,k) @ (k,n)."""
    m, n, k = sizes
    moved = (m * k + k * n + m * n) * layouts.setting.value_bytes
    return Operation(
        name=name, phase="forward" if direction == "forward" else "backward", kind="gemm",
        count=count, flop=2.0 * m * n * k, memory_bytes=moved,
        work=Product(m=m, n=n, k=k, direction=direction),
    )  # fmt: skip


def pointwise(
    operation: str, elements: Array, count: Array, layouts: Layouts, *, back: bool = True
) -> Iterator[Operation]:
    """A memory-bound operation, forward and, where a gradient goes back, backward."""
    directions: tuple[Direction, Direction] = ("forward", "backward")
    for direction, values in zip(directions[: 1 + back], VALUES_MOVED[operation], strict=False):
        yield Operation(
            name=operation, phase=direction, kind="pointwise", count=count, flop=0 * elements,
            memory_bytes=values * elements * layouts.setting.value_bytes,
            work=Pointwise(operation=operation, elements=elements, direction=direction),
        )  # fmt: skip


def kernel(
    operation: str, place: tuple[Phase, Kind], elements: Array, count: Array, moved: Array
) -> Operation:
    """A memory-bound operation that moves so many bytes."""
    return Operation(
        name=operation, phase=place[0], kind=place[1], count=count, flop=0 * elements,
        memory_bytes=moved,
        work=Pointwise(operation=operation, elements=elements, direction="forward"),
    )  # fmt: skip


def host(calls: Array) -> Operation:
    """Calls that find and start work and compute nothing."""
    return Operation(
        name="host", phase="other", kind="launch", count=calls, flop=0 * calls,
        memory_bytes=0 * calls, work=Launch(),
    )  # fmt: skip
