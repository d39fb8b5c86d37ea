from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import torch

from narrows.kernels.build import obstacle
from narrows.kernels.load import load
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.machine import KernelSet
from narrows.spec.model import ModelSpec, gpt2, llama

needs_native = pytest.mark.skipif(
    obstacle() is not None, reason=f"no native kernels here: {obstacle()}"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec(kind: str = "llama", **changes: object) -> ModelSpec:
    """A small model of a kind, two heads to a key head where it is llama's."""
    shape = {"layers": 2, "width": 64, "heads": 4, "vocabulary": 97, "context": 40}
    made = llama(**shape, kv_heads=2) if kind == "llama" else gpt2(**shape)
    return msgspec.structs.replace(made, **changes)


def built(shape: ModelSpec, kernels: KernelSet = "torch", *, deviation: float = 3.0) -> Transformer:
    """A model whose weights, biases and norms all matter to the result."""
    model = Transformer(shape, load(kernels))
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.mul_(deviation)
    return model
