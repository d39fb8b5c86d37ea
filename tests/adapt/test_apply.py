from __future__ import annotations

import msgspec
import pytest
import torch

from narrows.adapt.apply import adapted, apply
from narrows.kernels.load import available
from narrows.model.dropout import Draws
from narrows.spec.adapter import Biases, Learning, LowRank, Rule
from narrows.spec.errors import BadInput
from narrows.spec.machine import KernelSet

from .conftest import GPT2, LLAMA, SPECS, made, tokens, tuned


def learning_names(model: torch.nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("rule", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("kind", SPECS)
def test_an_adapter_begins_as_nothing(kind: str, rule: Rule) -> None:
    model, read = made(SPECS[kind]), tokens(SPECS[kind])
    before = model(read)
    apply(model, Learning(adapter=LowRank(rank=4, rule=rule)))
    assert torch.equal(model(read), before)
    own = {name.rpartition(".")[0] for name in learning_names(model)}
    assert all(not name.endswith((".a", ".b")) or "blocks." in name for name in own)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count < 0.2 * SPECS[kind].parameters


@pytest.mark.parametrize("kernels", available())
def test_only_what_learns_has_gradients_and_they_are_those_of_autograd(kernels: KernelSet) -> None:
    """In bf16 beside fp32, where both sum what is written out in test_low_rank."""
    learning = Learning(adapter=LowRank(rank=4, targets=("query", "value", "gate", "down")))
    found = []
    for how, dtype in ((kernels, torch.bfloat16), ("torch", torch.float32)):
        model = tuned(made(LLAMA, how, dtype), learning)  # type: ignore[arg-type]
        read = tokens(LLAMA)
        model.loss(read, read, chunk=16, scale=0.01).backward()
        found.append({name: each.grad for name, each in model.named_parameters()})
    for name, gradient in found[1].items():
        near = found[0][name]
        assert (gradient is None) == (near is None) == (".a." not in name and ".b" not in name)
        if gradient is not None and near is not None:
            assert float((near.float() - gradient).norm() / gradient.norm()) < 0.03, name


@pytest.mark.parametrize("kernels", available())
def test_biases_and_frozen_layers_leave_the_rest_as_it_is(kernels: KernelSet) -> None:
    model = made(GPT2, kernels, torch.bfloat16)
    apply(model, Learning(adapter=Biases(), frozen=("layers.0", "norms")))
    assert learning_names(model) == {f"blocks.1.{n}.bias" for n in ("qkv", "out", "up", "down")}
    read = tokens(GPT2)
    model.loss(read, read, chunk=16, scale=0.01).backward()
    whole = made(GPT2, kernels, torch.bfloat16)
    whole.loss(read, read, chunk=16, scale=0.01).backward()
    expected = {name: each.grad for name, each in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, expected[name]), name


FROZEN = {
    "embeddings": {"tokens.weight", "positions.weight"},
    "norms": {"norm.weight", "norm.bias"}
    | {
        f"blocks.{layer}.norm_{which}.{kind}"
        for layer in (0, 1) for which in ("attention", "feed_forward")
        for kind in ("weight", "bias")
    },
    "layers.1-1": {
        f"blocks.1.{part}.{kind}" for kind in ("weight", "bias")
        for part in ("qkv", "out", "up", "down", "norm_attention", "norm_feed_forward")
    },
}  # fmt: skip


@pytest.mark.parametrize("pattern", FROZEN)
def test_patterns_name_what_they_say(pattern: str) -> None:
    model = made(GPT2)
    everything = learning_names(model)
    apply(model, Learning(frozen=(pattern,)))
    assert everything - learning_names(model) == FROZEN[pattern]


def test_dropout_is_of_a_token_not_of_where_it_is_computed() -> None:
    model = tuned(made(LLAMA), Learning(adapter=LowRank(rank=4, dropout=0.3)))
    read = tokens(LLAMA, 4)
    model.draws = Draws(11)
    together = model(read)
    for first in range(0, 4, 2):
        model.draws = Draws(11, first)
        torch.testing.assert_close(model(read[first : first + 2]), together[first : first + 2])
    model.draws = Draws(12)
    assert not torch.allclose(model(read), together)
    model.eval()
    assert torch.equal(model(read), model(read))


def test_what_was_trained_is_put_on_a_model_again() -> None:
    learning = Learning(adapter=LowRank(rank=4, rule="dora"))
    model = tuned(made(LLAMA), learning)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    again, read = adapted(made(LLAMA), learning, trained), tokens(LLAMA)
    assert torch.equal(again(read), model(read))
    other = Learning(adapter=LowRank(rank=8, rule="dora"))
    with pytest.raises(BadInput, match="not those of this model and adapter"):
        adapted(made(LLAMA), other, trained)
    with pytest.raises(BadInput, match="not those of this model and adapter"):
        adapted(made(LLAMA), Learning(adapter=LowRank(rank=4)), trained)


def test_what_a_model_has_not_is_refused() -> None:
    paired = msgspec.structs.replace(LLAMA, encoder_layers=1)
    for spec, learning, match in (
        (LLAMA, Learning(adapter=Biases()), "no biases"),
        (GPT2, Learning(adapter=LowRank(targets=("gate",))), "gate, which the model has not"),
        (LLAMA, Learning(frozen=("layers.1-2",)), "the model has 2 layers"),
        (LLAMA, Learning(frozen=("head",)), "table of embeddings"),
        (LLAMA, Learning(adapter=LowRank(), frozen=("layers.0-1",)), "nothing would learn"),
        (paired, Learning(adapter=LowRank()), "an encoder beside"),
    ):
        with pytest.raises(BadInput, match=match):
            apply(made(spec), learning)
    for frozen in ("layer.0", "layers.3-1", "head.weight"):
        with pytest.raises(BadInput, match="frozen"):
            Learning(frozen=(frozen,))
