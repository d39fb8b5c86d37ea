"""GPTQ and AWQ lose less behind a matrix than rounding does; both keep what they must."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.adapt import awq
from narrows.adapt.calibration import MATRICES, Calibration, Inputs
from narrows.adapt.gptq import gptq
from narrows.adapt.method import AWQ, GPTQ, Round, Type
from narrows.adapt.quantize import Rounding, quantized
from narrows.adapt.rounding import rounded
from narrows.kernels.load import load
from narrows.model.blocks import Groups
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec

from .conftest import GPT2, LLAMA, made, tokens

SPECS = {
    "llama": msgspec.structs.replace(LLAMA, width=64, head_width=32, heads=2, kv_heads=1),
    "gpt2": GPT2,
}  # fmt: skip


def correlated(columns: int = 128, rows: int = 600) -> Tensor:
    """Inputs of a few directions, as a model's are."""
    random = torch.Generator().manual_seed(5)
    mixed = torch.randn(rows, 24, generator=random) @ torch.randn(24, columns, generator=random)
    return mixed + 0.2 * torch.randn(rows, columns, generator=random)


def lost(groups: Groups, weight_ND: Tensor, x_MD: Tensor) -> float:
    return float((x_MD @ (groups.whole() - weight_ND).T).square().mean())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("type", ["q4_0", "q4_1"])
def test_what_follows_makes_up_for_what_was_rounded(type: Type, ordered: bool) -> None:
    x_MD = correlated()
    w_ND = torch.randn(48, 128, generator=torch.Generator().manual_seed(6))
    inputs = Inputs(128)
    inputs.add(x_MD[:300])
    inputs.add(x_MD[300:])
    found = gptq(w_ND, inputs, type, GPTQ(ordered=ordered))
    assert lost(found, w_ND, x_MD) < 0.5 * lost(rounded(w_ND, type), w_ND, x_MD)


def test_columns_without_inputs_are_rounded_as_they_lie() -> None:
    x_MD, w_ND = correlated(), torch.randn(8, 128, generator=torch.Generator().manual_seed(6))
    x_MD[:, 40:70] = 0.0
    inputs = Inputs(128)
    inputs.add(x_MD)
    found = gptq(w_ND, inputs, "q4_1", GPTQ()).whole()
    step = (w_ND[:, 32:96].unflatten(1, (2, 32)).amax(2) - w_ND[:, 32:96].unflatten(
        1, (2, 32)).amin(2)) / 15  # fmt: skip
    assert (found[:, 40:70] - w_ND[:, 40:70]).abs().max() < 3 * step.max()
    assert found.isfinite().all()


def test_one_input_alone_has_no_inverse_and_is_damped() -> None:
    inputs = Inputs(64)
    inputs.add(torch.ones(1, 64))
    found = gptq(torch.randn(4, 64), inputs, "q4_0", GPTQ(damping=1e-9))
    assert found.whole().isfinite().all()


@pytest.mark.parametrize("name", SPECS)
def test_inputs_are_those_of_the_whole_model(name: str) -> None:
    spec = SPECS[name]
    model, x_BT = made(spec), tokens(spec)
    weights = dict(model.named_parameters())
    expected: list[Tensor] = []

    class Told(torch.nn.Module):
        def __init__(self, own: torch.nn.Module) -> None:
            super().__init__()
            self.own = own

        def linear(self, kernels: object, x: Tensor) -> Tensor:
            expected.append(x.flatten(0, 1))
            return self.own.linear(kernels, x)  # type: ignore[operator, no-any-return]

        def activated(self, kernels: object, h: Tensor, kind: str) -> Tensor:
            return self.linear(kernels, kernels.activation(h, kind))  # type: ignore[attr-defined]

    calibration = Calibration(spec, weights, x_BT)
    found = [calibration.inputs(block, MATRICES) for block in calibration.blocks()]
    for each in MATRICES:
        setattr(model.blocks[1], each, Told(getattr(model.blocks[1], each)))
    with torch.no_grad():
        model.hidden(x_BT)
    for each, x_MD in zip(MATRICES, expected, strict=True):
        torch.testing.assert_close(found[1][each].second_DD, x_MD.T @ x_MD, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found[1][each].absolute_D, x_MD.abs().mean(0))


def test_one_block_is_in_memory_at_a_time() -> None:
    spec = SPECS["llama"]
    calibration = Calibration(spec, dict(made(spec).named_parameters()), tokens(spec))
    assert all(each.is_meta for each in calibration.model.parameters())
    for block in calibration.blocks():
        real = [each for each in calibration.model.parameters() if not each.is_meta]
        assert len(real) == len(list(block.parameters()))


@pytest.mark.parametrize("name", SPECS)
def test_scaled_channels_compute_the_same(name: str) -> None:
    spec = SPECS[name]
    model, x_BT = made(spec), tokens(spec)
    with torch.no_grad():
        for norm in (model.blocks[0].norm_attention, model.blocks[1].norm_feed_forward):
            norm.weight[::7] *= 6.0
    expected = model(x_BT)
    weights = {name: each.detach().clone() for name, each in model.named_parameters()}
    calibration = Calibration(spec, weights, x_BT)
    changed = 0
    for layer, block in enumerate(calibration.blocks()):
        awq.fold(block, calibration.inputs(block, MATRICES), "q4_0", AWQ())
        for own, each in block.named_parameters():
            changed += not torch.equal(weights[f"blocks.{layer}.{own}"], each)
            weights[f"blocks.{layer}.{own}"] = each.detach().clone()
    assert changed > 4
    torch.testing.assert_close(of(spec, weights)(x_BT), expected, rtol=1e-3, atol=1e-4)


def of(spec: ModelSpec, weights: object) -> Transformer:
    model = Transformer(spec, load("torch"))
    with torch.no_grad():
        for name, each in model.named_parameters():
            each.copy_(weights[name])  # type: ignore[index]
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("method", [GPTQ(), AWQ()], ids=["gptq", "awq"])
def test_a_model_loses_less_than_by_rounding(method: GPTQ | AWQ) -> None:
    spec = SPECS["llama"]
    model, x_BT = made(spec), tokens(spec, 8)
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim > 1:
                each.mul_(6.0)
        for block in model.blocks:
            block.norm_attention.weight[::9] *= 8.0
    weights = dict(model.named_parameters())
    expected = model(x_BT).detach()

    def off(way: Round | GPTQ | AWQ) -> float:
        found = quantized(weights, spec, Rounding("q4_0", way, x_BT), kept={})
        return float((of(spec, found.weights)(x_BT) - expected).square().mean())

    assert off(method) < 0.8 * off(Round())


def test_what_has_other_matrices_is_refused() -> None:
    spec = msgspec.structs.replace(SPECS["llama"], classes=2)
    with pytest.raises(BadInput, match="a model with classes"):
        Calibration(spec, {}, tokens(spec))
    narrow = msgspec.structs.replace(SPECS["llama"], feed_forward_width=40)
    with pytest.raises(BadInput, match="40 values are not all whole groups"):
        quantized({}, narrow, Rounding("q4_0", GPTQ(), tokens(narrow)), kept={})
    behind = msgspec.structs.replace(SPECS["llama"], block_norms="behind")
    with pytest.raises(BadInput, match="norm before each half"):
        awq.refuse_others(behind)
    with pytest.raises(BadInput, match="damping is 0"):
        GPTQ(damping=0.0)
