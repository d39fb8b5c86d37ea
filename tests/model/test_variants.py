"""Choices beyond GPT-2's and Llama's: what each must do and must not, alone and with caches."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from narrows.kernels.load import load
from narrows.model.feed_forward import Routed
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import (
    GELU,
    Alibi,
    Banded,
    ClampedSwiGLU,
    Experts,
    GeGLU,
    Latent,
    LayerNorm,
    Learned,
    ModelSpec,
    Relative,
    ReLU,
    Rotary,
    Sigmoid,
    Softmax,
    SquaredReLU,
    Window,
    Yarn,
)

from .conftest import built, needs_native, spec

EXPERTS = Experts(count=6, chosen=2, width=24)
SPARSE = msgspec.structs.replace(
    EXPERTS, shared=2, dense_layers=1, router_biases=True, gate=Sigmoid(), scale=2.5, groups=3,
    groups_open=2,
)  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "positions of OPT": {"positions": Learned(extra=2)},
    "alibi": {"positions": Alibi()},
    "relative": {"positions": Relative(buckets=8, distance=20)},
    "half of a head turned": {"positions": Rotary(share=0.5)},
    "rotations stretched": {"positions": Rotary(scaling=Banded(factor=8.0, positions=16))},
    "yarn": {"positions": Rotary(scaling=Yarn(factor=4.0, positions=16, growth=1.2))},
    "norms without scale": {"norm": LayerNorm(scale=False)},
    "norms with biases": {"norm": LayerNorm(biases=True)},
    "relu": {"feed_forward": ReLU()},
    "squared relu": {"feed_forward": SquaredReLU()},
    "exact gelu": {"feed_forward": GELU(exact=True)},
    "geglu": {"feed_forward": GeGLU()},
    "clamped swiglu": {"feed_forward": ClampedSwiGLU(limit=1.0)},
    "experts": {"experts": EXPERTS},
    "experts with biases": {
        "experts": msgspec.structs.replace(EXPERTS, router_biases=True, biases=True)
    },
    "experts of DeepSeek": {"experts": SPARSE},
    "latent": {
        "latent": Latent(kv_rank=16, rope_width=8, value_width=24, query_rank=24), "kv_heads": 4,
    },
    "latent of full queries": {
        "latent": Latent(kv_rank=16, rope_width=8, value_width=16), "kv_heads": 4,
    },
    "window": {"window": Window(size=8)},
    "windows beside full layers": {
        "window": Window(size=8, full_every=2), "positions": Rotary(window_base=100.0),
    },
    "biases of queries": {"qkv_biases": True},
    "bias of the head": {"head_bias": True},
    "norms of heads": {"query_norm": "head"},
    "norms of queries": {"query_norm": "whole"},
    "norms behind": {"block_norms": "behind"},
    "norms on both sides": {"block_norms": "both"},
    "norms of the stream": {"block_norms": "stream", "final_norm": False},
    "side by side": {"block_norms": "shared"},
    "side by side, two norms": {"block_norms": "apart"},
    "norm of the embedding": {"embedding_norm": True},
    "sinks": {"sinks": True, "window": Window(size=8, full_every=2)},
    "caps and scales": {
        "score_cap": 2.0, "logit_cap": 3.0, "query_scale": 0.3, "embedding_scale": 8.0,
        "logit_scale": 0.5,
    },
}  # fmt: skip
each = pytest.mark.parametrize("shape", [spec(**c) for c in CHANGES.values()], ids=CHANGES.keys())
ENCODED = spec(positions=Relative(buckets=8, distance=20), encoder_layers=3)
BOTH_WAYS = spec("gpt2", causal=False, token_types=2, pooler=True, block_norms="stream")


def tokens(B: int = 2, T: int = 33, seed: int = 0) -> Tensor:
    return torch.randint(97, (B, T), generator=torch.Generator().manual_seed(seed))


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def learned(model: Transformer, **given: Tensor) -> None:
    targets_BT = tokens(seed=1)
    loss = model.loss(tokens(), targets_BT, chunk=16, scale=1 / targets_BT.numel(), **given)
    loss.backward()
    assert 0.5 * math.log(97) < loss.item() < 2 * math.log(97)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name.startswith("pooler"):
            continue
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        # A part of the table, or an expert, may be met by no token.
        if parameter.ndim == 1:
            assert (parameter.grad != 0).float().mean() > 0.5, name


@each
def test_it_learns_through_all_its_parameters(shape: ModelSpec) -> None:
    model = built(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    learned(model)


def test_both_stacks_learn() -> None:
    learned(built(ENCODED), source_BS=tokens(T=20, seed=2))
    learned(built(BOTH_WAYS))


@each
def test_the_loss_is_that_of_the_logits(shape: ModelSpec) -> None:
    model, twin = built(shape), built(shape)
    targets_BT = tokens(seed=1)
    targets_BT[:, ::4] = -1
    loss = model.loss(tokens(), targets_BT, chunk=7, scale=1 / 50)
    plain = torch.nn.functional.cross_entropy(
        twin(tokens()).flatten(0, 1), targets_BT.flatten(), ignore_index=-1, reduction="sum"
    ) / 50  # fmt: skip
    loss.backward()
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    named = zip(model.named_parameters(), twin.parameters(), strict=True)
    for (name, found), expected in named:
        if expected.grad is not None:
            gap = (found.grad - expected.grad).norm() / expected.grad.norm()
            assert gap < 2e-5, (name, gap)


@each
def test_the_future_changes_nothing_before_it(shape: ModelSpec) -> None:
    model, before_BT = built(shape).eval(), tokens(T=40)
    after_BT = before_BT.clone()
    after_BT[:, 17:] = (after_BT[:, 17:] + 1) % 97
    with torch.no_grad():
        before, after = model(before_BT), model(after_BT)
    torch.testing.assert_close(before[:, :17], after[:, :17], rtol=0, atol=1e-4)
    assert (before[:, 17:] - after[:, 17:]).abs().amax(-1).min() > 1e-3


@each
def test_caches_give_what_whole_sequences_give(shape: ModelSpec) -> None:
    model, tokens_BT = built(shape).eval(), tokens(B=3, T=40)
    with torch.no_grad():
        whole = model.hidden(tokens_BT)
        for parts in ((40,), (1,) * 40, (16, 1, 1, 12, 10)):
            caches, start, found = model.caches(3, 40), 0, []
            for count in parts:
                part_BT = tokens_BT[:, start : start + count]
                found.append(model.hidden(part_BT, caches, start))
                start += count
            torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-4)


@needs_native
@each
def test_native_kernels_are_as_true_as_torch_in_bf16(shape: ModelSpec) -> None:
    exact, torchs, ours = built(shape), built(shape), built(shape, "native")
    # Weights that bf16 holds exactly, so that all three are the same model.
    hidden = []
    for model in (exact, torchs, ours):
        model.bfloat16()
    for model in (exact.float(), torchs, ours):
        loss = model.loss(tokens(), tokens(seed=1), chunk=50, scale=1 / 66)
        loss.backward()
        hidden.append(loss.item())
    assert hidden[2] == pytest.approx(hidden[0], rel=5e-3)
    named = zip(exact.named_parameters(), torchs.parameters(), ours.parameters(), strict=True)
    for (name, true), theirs, mine in named:
        if true.grad is None or shape.experts is not None:
            # A token that rounding sends to another expert has another gradient.
            continue
        own, peer = gap(mine.grad, true.grad), gap(theirs.grad, true.grad)
        assert own < 1.3 * peer + 0.005, (name, own, peer)


@each
def test_a_recomputed_block_gives_the_same_gradients(shape: ModelSpec) -> None:
    def wrap(run: Any) -> Any:
        return lambda *given: checkpoint(run, *given, use_reentrant=False)

    plain = built(shape)
    again = Transformer(shape, load("torch"), wrap=wrap)
    again.load_state_dict(plain.state_dict())
    for model in (plain, again):
        model.loss(tokens(), tokens(seed=1), chunk=20, scale=1 / 66).backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_caches_of_a_decoder_that_attends_to_its_encoder() -> None:
    model, tokens_BT, source_BS = built(ENCODED).eval(), tokens(T=30), tokens(T=20, seed=2)
    with torch.no_grad():
        encoded = model.encode(source_BS)
        whole = model.hidden(tokens_BT, encoded_BSD=encoded)
        caches = model.caches(2, 30)
        parts = [
            model.hidden(tokens_BT[:, i : i + 1], caches, i, encoded_BSD=encoded) for i in range(30)
        ]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
        other_BS = source_BS.flip(1)
        assert (model(tokens_BT, other_BS) - model(tokens_BT, source_BS)).abs().max() > 1e-2


def test_an_encoder_is_given_tokens_and_no_other_model_is() -> None:
    with pytest.raises(BadInput, match="has an encoder and needs source tokens"):
        built(ENCODED)(tokens())
    with pytest.raises(BadInput, match="has no encoder to read source tokens"):
        built(spec())(tokens(), tokens())


def test_a_model_without_causality_sees_what_follows() -> None:
    model, tokens_BT = built(BOTH_WAYS).eval(), tokens()
    changed_BT = tokens_BT.clone()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % 97
    with torch.no_grad():
        gap_BTD = model.hidden(tokens_BT) - model.hidden(changed_BT)
        assert gap_BTD.abs().amax(-1).min() > 1e-4
        typed_BTD = model.hidden(tokens_BT, types_BT=torch.ones_like(tokens_BT))
        assert (typed_BTD - model.hidden(tokens_BT)).abs().max() > 1e-2
        assert model.pooled(typed_BTD).shape == (2, 64)


def test_a_window_hides_what_lies_before_it() -> None:
    model = built(spec(layers=1, window=Window(size=8))).eval()
    before_BT = tokens(T=30)
    after_BT = before_BT.clone()
    after_BT[:, 4] = (after_BT[:, 4] + 1) % 97
    with torch.no_grad():
        gap_BT = (model.hidden(before_BT) - model.hidden(after_BT)).abs().amax(-1)
    assert (gap_BT[:, 4:12] > 1e-6).all() and (gap_BT[:, 12:] == 0).all()


def routed(experts: Experts) -> Routed:
    shape = spec(experts=experts)
    layer = built(shape).blocks[0].experts
    assert isinstance(layer, Routed)
    return layer


@pytest.mark.parametrize(
    "experts",
    [EXPERTS, SPARSE, msgspec.structs.replace(EXPERTS, gate=Softmax(normalised=False), chosen=3)],
)
def test_experts_sum_what_each_chosen_one_gives(experts: Experts) -> None:
    layer = routed(msgspec.structs.replace(experts, dense_layers=0))
    kernels = load("torch")
    x_BTD = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(3))
    chosen_MC, weights_MC = layer.choice(kernels, x_BTD.flatten(0, 1))
    expected_MD = torch.zeros(18, 64)
    for token, x_D in enumerate(x_BTD.flatten(0, 1)):
        for expert, weight in zip(chosen_MC[token], weights_MC[token], strict=True):
            gate_F, up_F = (layer.each.up.weight[expert] @ x_D).chunk(2)
            hidden_F = torch.nn.functional.silu(gate_F) * up_F
            expected_MD[token] += weight * (layer.each.down.weight[expert] @ hidden_F)
        if layer.shared_up is not None and layer.shared_down is not None:
            gate_F, up_F = (layer.shared_up.weight @ x_D).chunk(2)
            hidden_F = torch.nn.functional.silu(gate_F) * up_F
            expected_MD[token] += layer.shared_down.weight @ hidden_F
    found_MD = layer(kernels, x_BTD).flatten(0, 1)
    torch.testing.assert_close(found_MD, expected_MD, rtol=1e-4, atol=1e-4)


def test_groups_that_score_worse_are_closed() -> None:
    layer = routed(msgspec.structs.replace(SPARSE, dense_layers=0, groups_open=1))
    chosen_MC, _ = layer.choice(load("torch"), torch.randn(50, 64))
    assert (chosen_MC // 2 == chosen_MC[:, :1] // 2).all()


def test_full_experts_drop_the_tokens_that_come_last() -> None:
    """Of 18 tokens that choose 2 of 6 experts, half a share is 3 to an expert."""
    whole, tight = routed(EXPERTS), routed(msgspec.structs.replace(EXPERTS, capacity=0.5))
    kernels = load("torch")
    x_BTD = torch.randn(1, 18, 64, generator=torch.Generator().manual_seed(3))
    chosen_MC, _ = whole.choice(kernels, x_BTD[0])
    places_MC = torch.stack(
        [(chosen_MC[:token] == expert).sum() for token in range(18) for expert in chosen_MC[token]]
    ).view(18, 2)
    kept_M = (places_MC < 3).all(dim=1)
    dropped_M = (places_MC >= 3).all(dim=1)
    assert 0 < kept_M.sum() < 18 and dropped_M.any()
    all_MD, some_MD = whole(kernels, x_BTD)[0], tight(kernels, x_BTD)[0]
    torch.testing.assert_close(some_MD[kept_M], all_MD[kept_M])
    assert (some_MD[dropped_M] == 0).all()


def test_what_is_dropped_of_a_sequence_does_not_depend_on_others() -> None:
    tight, kernels = routed(msgspec.structs.replace(EXPERTS, capacity=0.5)), load("torch")
    x_BTD = torch.randn(3, 18, 64, generator=torch.Generator().manual_seed(3))
    alone_BTD = torch.cat([tight(kernels, x_1TD) for x_1TD in x_BTD.split(1)])
    torch.testing.assert_close(tight(kernels, x_BTD), alone_BTD)


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(BadInput, match="3 of 4 groups of 6 experts cannot be open"):
        spec(experts=msgspec.structs.replace(EXPERTS, groups=4, groups_open=3)).__post_init__()
    latent = Latent(kv_rank=16, rope_width=8, value_width=16)
    with pytest.raises(BadInput, match="latent attention has no biases"):
        spec(latent=latent, query_norm="head").__post_init__()
