"""One operation alone, forward and backward, for `hardware` to time.

The probe times the very code that a model runs, so a prediction and a run differ by circumstance
only. `elements` counts the operation's main operand, as `plan` counts it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.kernels.draw import draw, tempered
from narrows.kernels.interface import AdamWStep, Heads, Kernels, Master, Moments
from narrows.kernels.load import load
from narrows.kernels.past import Cache, extend
from narrows.spec.errors import BadInput
from narrows.spec.machine import KernelSet

Trial = tuple[Callable[[], object], Callable[[], object]]
_WIDTH, _VOCABULARY, _TEMPERATURE = 512, 4096, 0.8
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def trial(
    operation: str, *, kernels: KernelSet, precision: Literal["fp32", "bf16"], elements: int
) -> Trial:
    """Callables that run `operation` once forward and once backward.

    Elements: norm, embedding and column_sum M·D; gelu and swiglu M·F (the activation's output);
    cross_entropy M·V logits; draw V logits; adamw, accumulate and squared_norm parameters. What has
    no backward pass (adamw, accumulate, squared_norm, column_sum, draw, and cross_entropy, whose
    forward pass leaves the gradient) gives a callable that does nothing.
    """
    chosen, dtype = load(kernels), _DTYPES[precision]
    if operation in ("norm", "gelu", "swiglu", "embedding"):
        return _differentiable(operation, chosen, dtype, elements)
    if operation in ("adamw", "accumulate", "squared_norm"):
        return _on_parameters(operation, chosen, dtype, elements), _nothing
    if operation == "cross_entropy":
        rows = max(1, elements // _VOCABULARY)
        logits_MV = torch.randn(rows, _VOCABULARY, dtype=dtype)
        targets_M = torch.randint(_VOCABULARY, (rows,))
        return lambda: chosen.cross_entropy_(logits_MV, targets_M, 1.0), _nothing
    if operation == "draw":
        return _draw(elements, dtype), _nothing
    if operation == "column_sum":
        x_MD = _rows(elements, dtype)
        if chosen.name == "torch":
            return lambda: x_MD.sum(0), _nothing
        from narrows.kernels.native import column_sum

        return lambda: column_sum(x_MD), _nothing
    raise BadInput(f"no trial is known for the operation {operation}")


def attention_trial(
    *, kernels: KernelSet, precision: Literal["fp32", "bf16"], rows: int, positions: int,
    head_width: int,
) -> Trial:  # fmt: skip
    """Causal attention over `rows` heads of one sequence."""
    chosen, dtype = load(kernels), _DTYPES[precision]
    heads = Heads(rows, rows, head_width)
    qkv_BTX = torch.randn(1, positions, 3 * rows * head_width, dtype=dtype, requires_grad=True)
    out_BTX = chosen.attention(qkv_BTX, heads, None)
    dout_BTX = torch.randn_like(out_BTX)

    def forward() -> None:
        chosen.attention(qkv_BTX, heads, None)

    def backward() -> None:
        torch.autograd.grad(out_BTX, qkv_BTX, dout_BTX, retain_graph=True)

    return forward, backward


class CachedShape(NamedTuple):
    """`queries` new positions of `sequences`, `keys` with what is cached."""

    sequences: int
    kv_heads: int
    group: int
    head_width: int
    queries: int
    keys: int

    @property
    def values(self) -> int:
        """Of all keys."""
        return self.sequences * self.kv_heads * self.keys * self.head_width


def cached_trial(shape: CachedShape, room: Tensor) -> Callable[[], object]:
    """Attention over a cache, from the fused projection to its output; over the next of those that
    fill the buffer each time, as all else that a model reads lies between two uses of one.
    """
    B, K, group, H, queries, keys = shape
    heads = Heads(K * group, K, H)
    qkv_BTX = torch.randn(
        B, queries, (heads.query + 2 * K) * H, dtype=room.dtype, device=room.device
    )  # fmt: skip
    sizes, whole = (2, B, K, keys, H), 2 * shape.values
    caches = [
        Cache(*room[i * whole : (i + 1) * whole].view(sizes))
        for i in _scattered(room.numel() // whole)
    ]
    turn, start = itertools.cycle(caches), keys - queries
    return torch.inference_mode()(lambda: extend(qkv_BTX, heads, None, next(turn), start))


def streamed_trial(
    sizes: tuple[int, int, int], weights: Tensor
) -> tuple[int, Callable[[], object]]:
    """How many weights [n,k] of an (m,k) @ (k,n) product the buffer holds, and a callable that
    multiplies by the next of them each time.
    """
    m, n, k = sizes
    x_MK = torch.ones(m, k, dtype=weights.dtype, device=weights.device)
    count = max(1, weights.numel() // (n * k))
    each = [weights[i * n * k : (i + 1) * n * k].view(n, k) for i in _scattered(count)]
    turn = itertools.cycle(each)
    return count, torch.inference_mode()(lambda: F.linear(x_MK, next(turn)))


def _scattered(count: int) -> list[int]:
    """All of so many places, none next to the one before: a processor would fetch that ahead."""
    step = max(1, round(0.38 * count))
    while math.gcd(step, count) > 1:
        step += 1
    return [i * step % count for i in range(count)]


def _differentiable(operation: str, kernels: Kernels, dtype: torch.dtype, elements: int) -> Trial:
    rows = max(1, elements // _WIDTH)
    width = 2 * _WIDTH if operation == "swiglu" else _WIDTH
    x_MX = torch.randn(1, rows, width, dtype=dtype, requires_grad=True)
    weight_D = torch.ones(_WIDTH, dtype=dtype, requires_grad=True)
    bias_D = torch.zeros(_WIDTH, dtype=dtype, requires_grad=True)
    table_VD = torch.randn(_VOCABULARY, _WIDTH, dtype=dtype, requires_grad=True)
    tokens_M = torch.randint(_VOCABULARY, (1, rows))
    delta_MX = torch.randn_like(x_MX)

    def run() -> tuple[Tensor, ...]:
        if operation == "norm":
            return kernels.add_norm(x_MX, delta_MX, weight_D, bias_D, epsilon=1e-5, centre=True)
        if operation == "embedding":
            return (F.embedding(tokens_M, table_VD),)
        return (kernels.activation(x_MX, "gelu" if operation == "gelu" else "swiglu"),)

    out = run()
    upstream = tuple(torch.randn_like(item) for item in out)
    inputs = {"norm": (x_MX, weight_D, bias_D), "embedding": (table_VD,)}.get(operation, (x_MX,))
    return run, lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True)


def _on_parameters(
    operation: str, kernels: Kernels, dtype: torch.dtype, elements: int
) -> Callable[[], object]:
    gradient = torch.randn(elements, dtype=dtype)
    if operation == "squared_norm":
        return lambda: kernels.squared_norm(gradient)
    if operation == "accumulate":
        sum_ = torch.zeros(elements)
        return lambda: kernels.accumulate_(sum_, gradient)
    moments = Moments(torch.zeros(elements), torch.zeros(elements))
    rest = torch.zeros(elements, dtype=torch.int16) if dtype != torch.float32 else None
    master = Master(torch.zeros(elements, dtype=dtype), rest)
    step = AdamWStep(1e-3, 0.1, 0.9, 0.95, 1e-8, 1, 1.0)
    return lambda: kernels.adamw_(master, moments, gradient, step)


def _draw(vocabulary: int, dtype: torch.dtype) -> Callable[[], object]:
    """As a sampler draws when nothing is ruled out."""
    logits_V, generator = torch.randn(vocabulary, dtype=dtype), np.random.default_rng(0)

    def run() -> int:
        wide_V = logits_V.float().numpy()
        assert math.isfinite(wide_V[int(wide_V.argmax())])
        return draw(tempered(wide_V, _TEMPERATURE), generator)

    return torch.inference_mode()(run)


def _rows(elements: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(max(1, elements // _WIDTH), _WIDTH, dtype=dtype)


def _nothing() -> None:
    return None
