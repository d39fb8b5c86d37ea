"""Blocks made again, wholly or but for products and attention: gradients, and what is kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from narrows.kernels.load import load
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.parallel import recompute
from narrows.parallel.recompute import kept, recomputed
from narrows.plan.layouts import Setting, Shapes
from narrows.plan.memory import product_bytes
from narrows.spec.layout import Recompute
from narrows.spec.model import ModelSpec, gpt2, llama

LLAMA = llama(layers=2, width=64, heads=4, kv_heads=2, vocabulary=97, context=32)
GPT2 = gpt2(layers=2, width=64, heads=4, vocabulary=97, context=32)
SPECS = {
    "llama": LLAMA, "gpt2": GPT2, "dropped": msgspec.structs.replace(GPT2, dropout=0.2),
    "both ways": msgspec.structs.replace(GPT2, causal=False),
}  # fmt: skip
TOKENS = torch.arange(64).view(2, 32) * 5 % 97


def gradients(spec: ModelSpec, how: Recompute) -> dict[str, torch.Tensor]:
    model = Transformer(spec, load("torch"), wrap=recomputed(how))
    initialise(model, 0)
    torch.manual_seed(5)
    model.loss(TOKENS, TOKENS, chunk=16, scale=0.01).backward()
    found = {name: each.grad for name, each in model.named_parameters()}
    assert all(each is not None for each in found.values())
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["full", "selective"])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_bit_for_bit_those_of_what_is_kept(name: str, how: Recompute) -> None:
    plain, again = gradients(SPECS[name], "none"), gradients(SPECS[name], how)
    assert all(torch.equal(each, again[name]) for name, each in plain.items())


@pytest.mark.parametrize("spec", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_what_is_kept_is_what_the_plan_counts(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation that is kept runs once; the results' bytes are the plan's."""
    runs: list[tuple[bool, str, int]] = []

    def counting(context: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
        chosen = kept(context, operation, *args, **named)
        if chosen is CheckpointPolicy.MUST_SAVE:
            size = 0
            if not context.is_recompute:
                given = operation(*args, **named)
                given = given if isinstance(given, torch.Tensor) else given[0]
                size = given.nbytes
            runs.append((context.is_recompute, str(operation), size))
        return chosen

    monkeypatch.setattr(recompute, "kept", counting)
    assert recompute.create_selective_checkpoint_contexts is create_selective_checkpoint_contexts
    model = Transformer(spec, load("torch"), wrap=recomputed("selective")).to(torch.bfloat16)
    initialise(model, 0)
    model.loss(TOKENS, TOKENS, chunk=16, scale=0.01).backward()
    forward = [each for each in runs if not each[0]]
    assert len(forward) == 5 * spec.layers, "four products and attention a block"
    setting = Setting(precision="bf16", kernels="torch", compile=False)
    planned, _ = product_bytes(Shapes.of([spec]), setting)
    # The last product's result is the next block's stream, and the softmax's sums are beside.
    last, sums = 2 * spec.width, 4 * spec.heads
    total = spec.layers * TOKENS.numel() * (planned.item() + last - sums)
    assert sum(size for _, _, size in forward) == total
