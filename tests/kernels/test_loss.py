from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.kernels.interface import Kernels
from narrows.kernels.loss import Head, Teacher, distillation, linear_cross_entropy

from .conftest import ROUNDING, error, normal

M, D, V = 37, 24, 101


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    targets_M = torch.randint(V, (M,), generator=torch.Generator().manual_seed(seed))
    targets_M[::5] = -1
    return normal(M, D, seed=seed), normal(V, D, seed=seed + 1, scale=0.3), targets_M


def plain(
    x_MD: Tensor, head_VD: Tensor, targets_M: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by torch alone, in double precision."""
    x_MD, head_VD = (each.double().clone().requires_grad_() for each in (x_MD, head_VD))
    loss = F.cross_entropy(x_MD @ head_VD.t(), targets_M, ignore_index=-1, reduction="sum") * scale
    return loss.detach(), *torch.autograd.grad(loss, (x_MD, head_VD))


@pytest.mark.parametrize("chunk", [1, 10, 36, 37, 1000])
@pytest.mark.parametrize("upstream", [1.0, 2.5])
def test_it_equals_the_plain_loss_and_its_gradients(
    chunk: int, upstream: float, reference: Kernels
) -> None:
    x_MD, head_VD, targets_M = inputs()
    expected = plain(x_MD, head_VD, targets_M, upstream / M)
    x_MD.requires_grad_()
    head_VD.requires_grad_()
    loss = linear_cross_entropy(
        x_MD, head_VD, targets_M, kernels=reference, chunk=chunk, scale=1 / M
    )
    (loss * upstream).backward()
    assert loss.dtype == torch.float32
    found = (loss.detach() * upstream, x_MD.grad, head_VD.grad)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)


def test_a_head_that_is_used_elsewhere_gets_both_gradients(reference: Kernels) -> None:
    x_MD, head_VD, targets_M = inputs()
    tokens_M = targets_M.clamp_min(0)
    head_VD.requires_grad_()
    loss = linear_cross_entropy(
        head_VD[tokens_M] + x_MD, head_VD, targets_M, kernels=reference, chunk=8, scale=1.0
    )
    loss.backward()
    twin_VD = head_VD.detach().double().requires_grad_()
    logits_MV = (twin_VD[tokens_M] + x_MD.double()) @ twin_VD.t()
    F.cross_entropy(logits_MV, targets_M, ignore_index=-1, reduction="sum").backward()
    torch.testing.assert_close(head_VD.grad.double(), twin_VD.grad, rtol=1e-5, atol=1e-5)


def test_one_side_alone_may_want_a_gradient(reference: Kernels) -> None:
    x_MD, head_VD, targets_M = inputs()
    expected = plain(x_MD, head_VD, targets_M, 1.0)
    for leaf, gradient in ((x_MD, expected[1]), (head_VD, expected[2])):
        leaf.requires_grad_()
        loss = linear_cross_entropy(
            x_MD, head_VD, targets_M, kernels=reference, chunk=16, scale=1.0
        )
        loss.backward()
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=1e-5, atol=1e-5)
        leaf.requires_grad_(False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_loss_is_computed(
    mode: type[torch.no_grad], reference: Kernels
) -> None:
    x_MD, head_VD, targets_M = inputs()
    with mode():
        loss = linear_cross_entropy(
            x_MD, head_VD.requires_grad_(), targets_M, kernels=reference, chunk=9, scale=1.0
        )
    assert not loss.requires_grad
    torch.testing.assert_close(
        loss.double(), plain(x_MD, head_VD, targets_M, 1.0)[0], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("chunk", [8, 64])
def test_natively_it_is_as_true_as_bf16_allows(chunk: int, native: Kernels) -> None:
    x_MD, head_VD, targets_M = inputs()
    expected = plain(x_MD, head_VD, targets_M, 1 / M)
    x_MD, head_VD = (each.bfloat16().requires_grad_() for each in (x_MD, head_VD))
    loss = linear_cross_entropy(x_MD, head_VD, targets_M, kernels=native, chunk=chunk, scale=1 / M)
    loss.backward()
    assert loss.item() == pytest.approx(float(expected[0]), rel=2e-3)
    assert error(x_MD.grad, expected[1]) < 4 * ROUNDING
    # The head's gradient is rounded once a chunk.
    assert error(head_VD.grad, expected[2]) < 4 * ROUNDING


def test_all_targets_ignored_is_no_loss(reference: Kernels) -> None:
    x_MD, head_VD, _ = inputs()
    x_MD.requires_grad_()
    nothing_M = torch.full((M,), -1)
    loss = linear_cross_entropy(x_MD, head_VD, nothing_M, kernels=reference, chunk=8, scale=1.0)
    loss.backward()
    assert loss.item() == 0.0 and (x_MD.grad == 0).all()


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("chunk", [5, M, 100])
def test_distillation_and_its_gradients_equal_the_plain_formula(
    chunk: int, cap: float | None
) -> None:
    x_MD, head_VD, targets_M = inputs()
    bias_V = normal(V, seed=6, scale=0.2)
    taught_ME, theirs_VE = normal(M, 16, seed=7), normal(V, 16, seed=8, scale=0.4)
    teacher = Teacher(taught_ME, Head(theirs_VE), 2.0, 0.3)
    leaves = [each.clone().requires_grad_() for each in (x_MD, head_VD, bias_V)]
    loss = distillation(
        leaves[0], Head(leaves[1], leaves[2], cap), teacher, targets_M, chunk=chunk, scale=0.1
    )
    (2.0 * loss).backward()
    twins = [each.double().requires_grad_() for each in (x_MD, head_VD, bias_V)]
    logits_MV = twins[0] @ twins[1].t() + twins[2]
    logits_MV = logits_MV if cap is None else cap * (logits_MV / cap).tanh()
    there = targets_M >= 0
    soft = F.kl_div(
        (logits_MV / 2)[there].log_softmax(-1),
        (taught_ME.double() @ theirs_VE.double().t() / 2)[there].softmax(-1), reduction="sum",
    )  # fmt: skip
    plain = F.cross_entropy(logits_MV[there], targets_M[there], reduction="sum")
    expected = 0.1 * (0.7 * plain + 0.3 * 4 * soft)
    (2.0 * expected).backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for ours, theirs in zip(leaves, twins, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)
