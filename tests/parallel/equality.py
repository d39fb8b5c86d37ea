"""Losses and gradients of a few micro-batches, whole, whatever the layout."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.dropout import Draws
from narrows.parallel.mesh import ranks_of
from narrows.parallel.recompute import recomputed
from narrows.parallel.running import Beside, Rows
from narrows.parallel.split import Making, local, split
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.layout import Layout
from narrows.spec.model import Experts, ModelSpec, gpt2, llama
from tests import layouts

from .processes import run

CPU = torch.device("cpu")
SEQUENCES, T = 8, 32
DENSE = llama(
    layers=4, width=64, heads=8, kv_heads=4, vocabulary=120, context=T, tied_embeddings=False
)
MODELS: dict[str, ModelSpec] = {
    "dense": DENSE,
    "gpt": gpt2(layers=4, width=64, heads=8, vocabulary=121, context=T),
    "experts": msgspec.structs.replace(DENSE, experts=Experts(count=8, chosen=2, width=32)),
    "masked": msgspec.structs.replace(DENSE, causal=False, tied_embeddings=True),
}


def layout_of(**given: Any) -> Layout:
    layout = layouts.layout_of(**{"micro_batch": 2, "loss_chunk": 24, **given})
    micros = SEQUENCES // (layout.batches * layout.micro_batch)
    return msgspec.structs.replace(layout, accumulation=micros)


def tokens() -> Tensor:
    generator = np.random.default_rng(7)
    return torch.from_numpy(generator.integers(0, 120, (SEQUENCES, T + 1)))


def one_step(
    spec: ModelSpec, layout: Layout, exchange: GradientExchange = EXACT
) -> tuple[float, dict[str, Tensor]]:
    """The loss of all sequences, and every gradient put together from this process's own parts."""
    ranks = ranks_of(layout, CPU, exchange)
    making = Making(load("torch"), recomputed(layout.recompute), CPU, torch.float32, exchange)
    mine = split(spec, layout, ranks, making, seed=3)
    first, count = mine.own(SEQUENCES)
    own_BT = tokens()[first : first + count]
    model = mine.model.train()

    def draw(index: int) -> None:
        model.draws = Draws(5, index * layout.micro_batch)

    loss = float(mine.run(Rows.of(own_BT), layout.loss_chunk, Beside(before=draw)))
    gradients = {
        name: local(parameter.grad)
        for name, parameter in mine.parameters().items()
        if parameter.grad is not None
    }
    mine.complete(gradients)
    found = {}
    for name in mine.owned & gradients.keys():
        whole = torch.full(mine.parts[name].shape, torch.nan)
        for box in mine.parts[name].boxes():
            places = tuple(slice(a, a + n) for a, n in zip(box.whole, box.size, strict=True))
            own = tuple(slice(a, a + n) for a, n in zip(box.part, box.size, strict=True))
            whole[places] = gradients[name][own]
        found[name] = whole
    return loss, found


def together(
    spec: ModelSpec, layout: Layout, exchange: GradientExchange = EXACT
) -> tuple[float, dict[str, Tensor]]:
    """The same from all processes of the layout."""
    results = run(layout.processes, one_step, spec, layout, exchange)
    whole: dict[str, Tensor] = {}
    for _, gradients in results:
        for name, gradient in gradients.items():
            known = whole.setdefault(name, torch.full_like(gradient, torch.nan))
            there = ~gradient.isnan()
            assert known[there].isnan().all(), f"two ranks own the same piece of {name}"
            known[there] = gradient[there]
    losses = {round(loss, 12) for loss, _ in results}
    assert len(losses) == 1, losses
    return results[0][0], whole


@functools.cache
def alone(spec: ModelSpec) -> tuple[float, dict[str, Tensor]]:
    """Of a single process."""
    return together(spec, layout_of())


def assert_equal(spec: ModelSpec, layout: Layout, tolerance: float = 1e-6) -> None:
    """The layout's loss and gradients are the single process's; errors are relative, in norm."""
    loss, gradients = alone(spec)
    other_loss, others = together(spec, layout)
    assert abs(other_loss / loss - 1.0) < tolerance
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        error = float((others[name] - gradient).norm() / gradient.norm())
        assert error < tolerance, f"{name}: {error:.2e}"
