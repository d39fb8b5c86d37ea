"""A few transformer blocks built from kernels alone, for `hardware` to time as a whole.

Single operations are timed over buffers that stay in the cache; in a stack each block meets data
that the others have pushed out, and pays for what lies between the operations. `kind` has the
choices of `spec.model.gpt2` or `spec.model.llama`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from narrows.kernels.interface import Activation, Heads, Kernels, Rotation
from narrows.kernels.past import Cache, extend
from narrows.spec.machine import BlockKind
from narrows.spec.model import ModelSpec, gpt2, llama


class BlockShape(NamedTuple):
    """What a stack is made of and fed with: [sequences, positions, width] in `layers` blocks."""

    kind: BlockKind
    layers: int
    width: int
    head_width: int
    sequences: int
    positions: int

    @property
    def spec(self) -> ModelSpec:
        """The same blocks as a model, whose head does not matter."""
        make = gpt2 if self.kind == "gpt2" else llama
        return make(
            layers=self.layers, width=self.width, heads=self.width // self.head_width,
            vocabulary=1, context=self.positions,
        )  # fmt: skip


def block_trial(
    shape: BlockShape, kernels: Kernels, dtype: torch.dtype, device: str
) -> Callable[[], None]:
    """Forward and backward through the stack, gradients of all weights included."""
    blocks = BlockStack(shape.spec, kernels, dtype, device)
    x_BTD = torch.randn(
        shape.sequences, shape.positions, shape.width, dtype=dtype, device=device
    )  # fmt: skip
    x_BTD.requires_grad_()

    def run() -> None:
        blocks.zero_grad(set_to_none=True)
        x_BTD.grad = None
        torch.autograd.backward(blocks(x_BTD), x_BTD.detach())

    return run


def extend_trial(
    shape: BlockShape, queries: int, kernels: Kernels, dtype: torch.dtype, device: str
) -> Callable[[], object]:
    """The last `queries` of the shape's positions, the others being in the caches."""
    spec, start = shape.spec, shape.positions - queries
    blocks = BlockStack(spec, kernels, dtype, device).requires_grad_(False)
    x_BTD = torch.randn(shape.sequences, queries, shape.width, dtype=dtype, device=device)
    sizes = (2, shape.sequences, spec.kv_heads, shape.positions, spec.head_width)
    caches = [
        Cache(*torch.randn(sizes, dtype=dtype, device=device)) for _ in range(shape.layers)
    ]  # fmt: skip
    return torch.inference_mode()(lambda: blocks.extend(x_BTD, caches, start))


class BlockStack(nn.Module):
    """Attention and feed-forward as the model's blocks are, with weights of deviation 0.02."""

    def __init__(self, spec: ModelSpec, kernels: Kernels, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.spec, self.kernels = spec, kernels
        D, F, out = spec.width, spec.feed_forward_width, spec.heads * spec.head_width
        shapes = ((spec.qkv_width, D), (D, out), (spec.up_width, D), (D, F))

        def parameter(*sizes: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(sizes, dtype=dtype, device=device))

        self.weights = nn.ParameterList(
            parameter(*sizes) for _ in range(spec.layers) for sizes in shapes
        )
        self.biases = nn.ParameterList(
            parameter(rows) for _ in range(spec.layers) for rows, _ in shapes if spec.biases
        )
        self.norms = nn.ParameterList(
            parameter(D) for _ in range(spec.layers) for _ in range(4 if spec.biases else 2)
        )
        self.rotation = None if spec.biases else _rotation(spec, device)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The stream after the last block [B,T,D]."""
        kernels, heads, rotation = self.kernels, self._heads, self.rotation
        return self._run(x_BTD, lambda qkv_BTX, _: kernels.attention(qkv_BTX, heads, rotation))

    def extend(self, x_BTD: Tensor, caches: list[Cache], start: int) -> Tensor:
        """The same for new positions from `start` on, whose keys and values join the caches."""
        end, whole = start + x_BTD.shape[1], self.rotation
        rotation = Rotation(*(each[start:end] for each in whole)) if whole else None

        def attend(qkv_BTX: Tensor, layer: int) -> Tensor:
            return extend(qkv_BTX, self._heads, rotation, caches[layer], start)

        return self._run(x_BTD, attend)

    def _run(self, x_BTD: Tensor, attend: Callable[[Tensor, int], Tensor]) -> Tensor:
        kernels, spec = self.kernels, self.spec
        activation: Activation = "gelu" if spec.biases else "swiglu"
        delta_BTD = None
        for layer in range(spec.layers):
            qkv, out, up, down = list(self.weights)[4 * layer : 4 * layer + 4]
            b_qkv, b_out, b_up, b_down = self._biases(layer)
            (w1, b1), (w2, b2) = self._norms(layer)
            x_BTD, y_BTD = kernels.add_norm(
                x_BTD, delta_BTD, w1, b1, epsilon=1e-5, centre=spec.biases
            )
            y_BTX = attend(kernels.linear(y_BTD, qkv, b_qkv), layer)
            x_BTD, y_BTD = kernels.add_norm(
                x_BTD, kernels.linear(y_BTX, out, b_out), w2, b2, epsilon=1e-5, centre=spec.biases
            )
            h_BTX = kernels.linear(y_BTD, up, b_up)
            delta_BTD = kernels.activated_linear(h_BTX, down, b_down, activation)
        return x_BTD if delta_BTD is None else x_BTD + delta_BTD

    @property
    def _heads(self) -> Heads:
        return Heads(self.spec.heads, self.spec.kv_heads, self.spec.head_width)

    def _biases(self, layer: int) -> list[nn.Parameter] | list[None]:
        return list(self.biases)[4 * layer : 4 * layer + 4] or [None] * 4

    def _norms(self, layer: int) -> tuple[tuple[Tensor, Tensor | None], ...]:
        if self.spec.biases:
            w1, b1, w2, b2 = list(self.norms)[4 * layer : 4 * layer + 4]
            return (w1, b1), (w2, b2)
        w1, w2 = list(self.norms)[2 * layer : 2 * layer + 2]
        return (w1, None), (w2, None)


def _rotation(spec: ModelSpec, device: str) -> Rotation:
    half = spec.head_width // 2
    angles_TH = torch.arange(spec.context, device=device)[:, None] / 10_000.0 ** (
        torch.arange(half, device=device) / half
    )
    return Rotation(angles_TH.cos(), angles_TH.sin())
