"""The readable kernels against the formulas themselves, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from narrows.kernels.interface import AdamWStep, Heads, Kernels, Master, Moments, Rotation
from narrows.kernels.reference import rotate, split_heads

from .conftest import normal


@pytest.mark.parametrize("added", [True, False])
def test_layer_norm_centres_and_scales(reference: Kernels, added: bool) -> None:
    x_BTD, delta_BTD = normal(2, 3, 20).double(), normal(2, 3, 20, seed=1).double()
    weight_D, bias_D = normal(20, seed=2).double(), normal(20, seed=3).double()
    sum_BTD, out_BTD = reference.add_norm(
        x_BTD, delta_BTD if added else None, weight_D, bias_D, epsilon=0.1, centre=True
    )
    total = x_BTD + delta_BTD if added else x_BTD
    mean = total.mean(-1, keepdim=True)
    deviation = ((total - mean).square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(sum_BTD, total)
    torch.testing.assert_close(out_BTD, (total - mean) / deviation * weight_D + bias_D)


def test_rms_norm_scales_alone(reference: Kernels) -> None:
    x_BTD, weight_D = normal(2, 3, 20).double() + 1.0, normal(20, seed=2).double()
    out_BTD = reference.add_norm(x_BTD, None, weight_D, None, epsilon=0.1, centre=False)[1]
    scale = (x_BTD.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(out_BTD, x_BTD / scale * weight_D)


def test_gelu_is_the_tanh_form(reference: Kernels) -> None:
    h = torch.linspace(-6, 6, 101, dtype=torch.float64)
    inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
    torch.testing.assert_close(reference.activation(h, "gelu"), 0.5 * h * (1 + inner.tanh()))


def test_swiglu_gates_the_second_half_by_the_first(reference: Kernels) -> None:
    gate, up = normal(2, 3, 8).double(), normal(2, 3, 8, seed=1).double()
    out = reference.activation(torch.cat([gate, up], dim=-1), "swiglu")
    torch.testing.assert_close(out, gate / (1 + (-gate).exp()) * up)


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    x_BNTH = normal(2, 3, 5, 8)
    angles_TH = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) * 6
    turned = rotate(x_BNTH, Rotation(angles_TH.cos(), angles_TH.sin()))
    numbers = torch.complex(x_BNTH[..., :4], x_BNTH[..., 4:])
    expected = numbers * torch.polar(torch.ones_like(angles_TH), angles_TH)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1))


def test_scores_of_rotated_heads_depend_on_distance_alone() -> None:
    T, H = 12, 16
    angles_TH = torch.arange(T)[:, None] * 10_000.0 ** -(torch.arange(H // 2) / (H // 2))
    rotation = Rotation(angles_TH.cos(), angles_TH.sin())
    q_BNTH, k_BNTH = (rotate(normal(1, 1, 1, H, seed=i).expand(1, 1, T, H), rotation)
                      for i in range(2))  # fmt: skip
    scores_TS = (q_BNTH @ k_BNTH.transpose(-1, -2))[0, 0]
    for distance in range(T):
        along = scores_TS.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [Heads(4, 4, 8), Heads(6, 2, 8), Heads(4, 1, 8)])
def test_attention_is_a_causal_softmax_over_shared_heads(reference: Kernels, heads: Heads) -> None:
    B, T = 2, 9
    N, K, H = heads
    qkv_BTX = normal(B, T, (N + 2 * K) * H).double()
    found = reference.attention(qkv_BTX, heads, None).unflatten(-1, (N, H))
    q_BNTH, k_BKTH, v_BKTH = split_heads(qkv_BTX, heads)
    for n in range(N):
        k_BTH, v_BTH = k_BKTH[:, n // (N // K)], v_BKTH[:, n // (N // K)]
        scores_BTS = q_BNTH[:, n] @ k_BTH.transpose(1, 2) / math.sqrt(H)
        later_TS = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights_BTS = scores_BTS.masked_fill(later_TS, -math.inf).softmax(-1)
        torch.testing.assert_close(found[:, :, n], weights_BTS @ v_BTH)


def test_cross_entropy_and_its_gradient(reference: Kernels) -> None:
    logits_MV = normal(7, 33, scale=3.0).requires_grad_()
    targets_M = torch.tensor([0, 32, -100, 5, -1, 7, 7])
    expected_M = F.cross_entropy(
        logits_MV, targets_M.clamp_min(-1), ignore_index=-1, reduction="none"
    )
    (expected_M.sum() * 0.25).backward()
    gradient_MV = logits_MV.detach().clone()
    found_M = reference.cross_entropy_(gradient_MV, targets_M, 0.25)
    torch.testing.assert_close(found_M, expected_M.detach())
    torch.testing.assert_close(gradient_MV, logits_MV.grad, rtol=1e-5, atol=1e-7)


def test_adamw_is_torch_s(reference: Kernels) -> None:
    parameter = torch.nn.Parameter(normal(50))
    master = Master(parameter.detach().clone(), None)
    moments = Moments(torch.zeros(50), torch.zeros(50))
    optimizer = torch.optim.AdamW(
        [parameter], lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    for number in range(1, 8):
        gradient = normal(50, seed=number)
        parameter.grad = gradient * 0.5
        optimizer.step()
        step = AdamWStep(0.03, 0.1, 0.9, 0.95, 1e-8, number, 0.5)
        reference.adamw_(master, moments, gradient, step)
        torch.testing.assert_close(master.weight, parameter.detach(), rtol=1e-6, atol=1e-7)


def test_adamw_of_a_weight_and_its_rest_is_the_same_in_pieces(
    reference: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stepped() -> list[torch.Tensor]:
        master = Master(
            torch.empty(5, 10, dtype=torch.bfloat16), torch.zeros(5, 10, dtype=torch.int16)
        )
        moments = Moments(torch.zeros(5, 10), torch.zeros(5, 10))
        reference.set_(master, normal(5, 10))
        for number in range(1, 4):
            # As it comes from a product turned around.
            gradient = normal(10, 5, seed=number).bfloat16().T
            step = AdamWStep(0.03, 0.1, 0.9, 0.95, 1e-8, number, 0.5)
            reference.adamw_(master, moments, gradient, step)
        assert master.rest is not None
        return [*master, *moments]

    whole = stepped()
    # Of whole registers: what fills none is rounded otherwise.
    monkeypatch.setattr("narrows.kernels.reference._JOINED", 16)
    assert all(map(torch.equal, stepped(), whole))
