from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.model import (
    GELU,
    LayerNorm,
    Learned,
    ModelSpec,
    RMSNorm,
    Rotary,
    SwiGLU,
    gpt2,
    llama,
)

from .conftest import built, needs_native, spec

CHOICES = list(
    itertools.product(
        (Learned(), Rotary()), (LayerNorm(), RMSNorm()), (GELU(), SwiGLU()), (True, False),
        (True, False), (4, 2, 1),
    )
)  # fmt: skip


def of_choice(choice: tuple[object, ...], **changes: object) -> ModelSpec:
    names = ("positions", "norm", "feed_forward", "biases", "tied_embeddings", "kv_heads")
    return spec("gpt2", **dict(zip(names, choice, strict=True)), **changes)


def tokens(shape: ModelSpec, B: int = 2, T: int = 33, seed: int = 0) -> Tensor:
    return torch.randint(shape.vocabulary, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("choice", CHOICES[:: len(CHOICES) // 24 - 1])
def test_every_choice_learns_through_all_its_parameters(choice: tuple[object, ...]) -> None:
    shape = of_choice(choice)
    model = built(shape)
    targets_BT = tokens(shape, seed=1)
    loss = model.loss(tokens(shape), targets_BT, chunk=16, scale=1 / targets_BT.numel())
    loss.backward()
    assert 0.5 * math.log(97) < loss.item() < 2 * math.log(97)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "shape",
    [
        *(of_choice(choice) for choice in CHOICES),
        gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024),
        llama(layers=30, width=576, heads=9, kv_heads=3, feed_forward_width=1536,
              vocabulary=49152, context=1024),
        llama(layers=32, width=4096, heads=32, kv_heads=8, feed_forward_width=14336,
              vocabulary=128256, context=8192, tied_embeddings=False),
        spec(head_width=24, feed_forward_width=100),
    ],
)  # fmt: skip
def test_the_spec_counts_the_parameters_of_the_module(shape: ModelSpec) -> None:
    with torch.device("meta"):
        model = Transformer(shape, load("torch"))
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters


def test_published_sizes() -> None:
    """GPT-2's 124M (Radford et al. 2019), SmolLM2-135M's and Llama 3 8B's (arXiv:2407.21783)."""
    sizes = {
        gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024): 124_439_808,
        llama(layers=30, width=576, heads=9, kv_heads=3, feed_forward_width=1536,
              vocabulary=49152, context=2048): 134_515_008,
        llama(layers=32, width=4096, heads=32, kv_heads=8, feed_forward_width=14336,
              vocabulary=128256, context=8192, tied_embeddings=False): 8_030_261_248,
    }  # fmt: skip
    for shape, count in sizes.items():
        assert shape.parameters == count


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_future_changes_nothing_before_it(kind: str) -> None:
    shape = spec(kind)
    model = built(shape).eval()
    before_BT = tokens(shape, T=40)
    with torch.no_grad():
        whole = model(before_BT)
        for place in (1, 17, 39):
            after_BT = before_BT.clone()
            after_BT[:, place:] = (after_BT[:, place:] + 1) % shape.vocabulary
            changed = model(after_BT)
            torch.testing.assert_close(changed[:, :place], whole[:, :place], rtol=0, atol=1e-5)
            assert (changed[:, place:] - whole[:, place:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_a_rotation_s_angle_is_its_position_times_its_frequency(base: float) -> None:
    shape = spec(positions=Rotary(base=base))
    cos_TH, sin_TH = Transformer(shape, load("torch"))._rotation(3, 30, torch.device("cpu"))
    for place, pair in ((0, 0), (5, 1), (29, 7)):
        angle = (3 + place) * base ** (-2 * pair / shape.head_width)
        assert cos_TH[place, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert sin_TH[place, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sequences_of_a_batch_do_not_touch(kind: str) -> None:
    shape = spec(kind)
    model, tokens_BT = built(shape).eval(), tokens(shape, B=3)
    with torch.no_grad():
        together = model(tokens_BT)
        for row in range(3):
            alone = model(tokens_BT[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [7, 66, 1000])
def test_the_loss_is_that_of_plain_cross_entropy(kind: str, tied: bool, chunk: int) -> None:
    shape = spec(kind, tied_embeddings=tied)
    model, twin = built(shape), built(shape)
    tokens_BT, targets_BT = tokens(shape), tokens(shape, seed=1)
    targets_BT[:, ::4] = -1
    loss = model.loss(tokens_BT, targets_BT, chunk=chunk, scale=1 / 50)
    plain = F.cross_entropy(
        twin(tokens_BT).flatten(0, 1), targets_BT.flatten(), ignore_index=-1, reduction="sum"
    ) / 50  # fmt: skip
    loss.backward()
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    named = zip(model.named_parameters(), twin.parameters(), strict=True)
    for (name, found), expected in named:
        gap = (found.grad - expected.grad).norm() / expected.grad.norm()
        assert gap < 5e-6, (name, gap)


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@needs_native
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "changes", [{}, {"heads": 1, "kv_heads": 1, "head_width": 128}, {"head_width": 48},
                {"tied_embeddings": False}],
)  # fmt: skip
def test_native_kernels_are_as_true_as_torch_in_bf16(kind: str, changes: dict[str, object]) -> None:
    shape = spec(kind, context=80, **changes)
    exact, torchs, ours = built(shape), built(shape), built(shape, "native")
    tokens_BT, targets_BT = tokens(shape, T=77), tokens(shape, T=77, seed=1)
    targets_BT[0, :9] = -1
    losses = []
    # Weights that bf16 holds exactly, so that all three are the same model.
    for model in (exact, torchs, ours):
        model.bfloat16()
    exact.float()
    for model in (exact, torchs, ours):
        loss = model.loss(tokens_BT, targets_BT, chunk=50, scale=1 / 145)
        loss.backward()
        losses.append(loss.item())
    assert losses[2] == pytest.approx(losses[0], rel=2e-3)
    named = zip(exact.named_parameters(), torchs.parameters(), ours.parameters(), strict=True)
    for (name, true), theirs, mine in named:
        own, peer = gap(mine.grad, true.grad), gap(theirs.grad, true.grad)
        assert own < 0.03, (name, own)
        assert own < 1.25 * peer + 0.002, (name, own, peer)


@pytest.mark.parametrize("kernels", ["torch", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_token_alone_is_a_sequence(kind: str, kernels: str) -> None:
    model = built(spec(kind), kernels).bfloat16()  # type: ignore[arg-type]
    loss = model.loss(torch.tensor([[3]]), torch.tensor([[4]]), chunk=9, scale=1.0)
    loss.backward()
    assert 0 < loss.item() < 20
    assert all(torch.isfinite(each.grad).all() for each in model.parameters())


def test_a_wrapped_block_computes_the_same() -> None:
    from torch.utils.checkpoint import checkpoint

    shape = spec()
    plain = built(shape)
    calls = []

    def wrap(run):  # type: ignore[no-untyped-def]
        def again(*given):  # type: ignore[no-untyped-def]
            calls.append(1)
            return checkpoint(run, *given, use_reentrant=False)

        return again

    wrapped = Transformer(shape, load("torch"), wrap=wrap)
    wrapped.load_state_dict(plain.state_dict())
    for model in (plain, wrapped):
        model.loss(tokens(shape), tokens(shape, seed=1), chunk=20, scale=1 / 66).backward()
    assert len(calls) == shape.layers
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_dropout_works_in_training_alone_and_by_seed() -> None:
    shape = spec("gpt2", dropout=0.2)
    model, tokens_BT = built(shape), tokens(spec("gpt2"))

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(tokens_BT).detach()

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_first_weights_are_those_of_the_literature(kind: str) -> None:
    shape = spec(kind, width=256, layers=8, vocabulary=500)
    model = Transformer(shape, load("torch"))
    initialise(model, 5)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
            continue
        residual = name.endswith(("out.weight", "down.weight"))
        deviation = 0.02 / math.sqrt(2 * 8) if residual else 0.02
        # Four standard errors of a deviation, and of a mean, of that many numbers.
        count = parameter.numel()
        assert parameter.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(2 * count))
        assert abs(parameter.mean().item()) < 4 * deviation / math.sqrt(count), name


def test_a_fresh_model_knows_nothing() -> None:
    shape = spec(vocabulary=500)
    model = Transformer(shape, load("torch"))
    initialise(model, 0)
    loss = model.loss(tokens(shape), tokens(shape, seed=1), chunk=20, scale=1 / 66)
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


def test_equal_seeds_give_equal_weights_in_any_precision() -> None:
    def weights(seed: int, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(seed + 1)
        model = Transformer(spec(), load("torch")).to(dtype)
        initialise(model, seed)
        return [parameter.detach() for parameter in model.parameters()]

    first, again, other = (
        weights(0, torch.float32),
        weights(0, torch.float32),
        weights(1, torch.float32),
    )
    half = weights(0, torch.bfloat16)
    assert all(map(torch.equal, first, again))
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(first, half, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_caches_give_what_whole_sequences_give(kind: str) -> None:
    shape = spec(kind)
    model, tokens_BT = built(shape).eval(), tokens(shape, B=3, T=40)
    with torch.no_grad():
        whole = model.hidden(tokens_BT)
        for parts in ((40,), (1,) * 40, (16, 1, 1, 12, 10)):
            caches, start, found = model.caches(3, 40), 0, []
            for count in parts:
                part_BT = tokens_BT[:, start : start + count]
                found.append(model.hidden(part_BT, caches, start))
                start += count
            torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-4)


def test_a_model_first_used_in_inference_mode_can_be_trained() -> None:
    model = built(spec())
    with torch.inference_mode():
        model(tokens(model.spec))
    model.loss(tokens(model.spec), tokens(model.spec, seed=1), chunk=20, scale=1.0).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
