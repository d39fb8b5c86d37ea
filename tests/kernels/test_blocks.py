from __future__ import annotations

import pytest
import torch

from narrows.kernels.blocks import BlockShape, BlockStack, block_trial, extend_trial
from narrows.kernels.interface import Kernels
from narrows.kernels.load import load
from narrows.kernels.past import Cache
from narrows.spec.machine import BlockKind

SHAPE = BlockShape("llama", layers=2, width=64, head_width=32, sequences=2, positions=16)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_stack_is_what_the_spec_says(kind: BlockKind) -> None:
    spec = SHAPE._replace(kind=kind).spec
    stack = BlockStack(spec, load("torch"), torch.float32, "cpu")
    outside = spec.embedding_parameters + spec.width * (2 if kind == "gpt2" else 1)
    assert sum(p.numel() for p in stack.parameters()) == spec.parameters - outside


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_native_and_torch_stacks_agree(kind: BlockKind, native: Kernels) -> None:
    torch.manual_seed(0)
    one = BlockStack(SHAPE._replace(kind=kind).spec, load("torch"), torch.bfloat16, "cpu")
    other = BlockStack(SHAPE._replace(kind=kind).spec, native, torch.bfloat16, "cpu")
    other.load_state_dict(one.state_dict())
    x_BTD = torch.randn(2, 16, 64).bfloat16()
    assert torch.allclose(one(x_BTD).float(), other(x_BTD).float(), atol=0.05)


def test_a_trial_reaches_every_weight() -> None:
    seen: list[torch.nn.Parameter] = []
    before = BlockStack.forward

    def watched(self: BlockStack, x_BTD: torch.Tensor) -> torch.Tensor:
        seen.extend(self.parameters())
        return before(self, x_BTD)

    BlockStack.forward = watched  # type: ignore[method-assign]
    try:
        block_trial(SHAPE, load("torch"), torch.float32, "cpu")()
    finally:
        BlockStack.forward = before  # type: ignore[method-assign]
    assert seen and all(p.grad is not None and p.grad.abs().sum() > 0 for p in seen)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_stack_goes_on_from_its_caches(kind: BlockKind) -> None:
    spec = SHAPE._replace(kind=kind).spec
    stack = BlockStack(spec, load("torch"), torch.float32, "cpu").requires_grad_(False)
    x_BTD = torch.randn(2, 16, 64)
    caches = [Cache(*torch.zeros(2, 2, spec.kv_heads, 16, spec.head_width)) for _ in range(2)]
    found = [stack.extend(x_BTD[:, :11], caches, 0), stack.extend(x_BTD[:, 11:], caches, 11)]
    assert torch.allclose(torch.cat(found, 1), stack(x_BTD), atol=1e-5)


@pytest.mark.parametrize("queries", [1, 16])
def test_extending_can_be_timed(queries: int) -> None:
    out_BTD = extend_trial(SHAPE, queries, load("torch"), torch.float32, "cpu")()
    assert isinstance(out_BTD, torch.Tensor) and out_BTD.shape == (2, queries, 64)
