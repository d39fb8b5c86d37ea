from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from narrows.adapt.apply import apply
from narrows.kernels.load import load
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.adapter import Learning
from narrows.spec.machine import KernelSet
from narrows.spec.model import ModelSpec, gpt2, llama

LLAMA = llama(layers=2, width=96, heads=4, kv_heads=2, vocabulary=97, context=40)
GPT2 = gpt2(layers=2, width=64, heads=4, vocabulary=97, context=40)
SPECS = {"llama": LLAMA, "gpt2": GPT2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(
    spec: ModelSpec, kernels: KernelSet = "torch", dtype: torch.dtype = torch.float32
) -> Transformer:
    """A model with first values."""
    with torch.device("meta"):
        model = Transformer(spec, load(kernels)).to(dtype)
    model.to_empty(device="cpu")
    initialise(model, 1)
    return model


def tuned(model: Transformer, learning: Learning) -> Transformer:
    """The same as if it had learned: what learns is random, not zero."""
    apply(model, learning)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.add_(0.1 * noise)
    return model


def tokens(spec: ModelSpec, sequences: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(spec.vocabulary, (sequences, spec.context), generator=generator)
