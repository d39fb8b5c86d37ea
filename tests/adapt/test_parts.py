"""Adapters on what is no plain block: experts, latent attention, encoders and heads for classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.adapt.apply import apply
from narrows.adapt.experts import AdaptedExperts
from narrows.adapt.merge import merge, merge_proven
from narrows.adapt.peft import write_adapter
from narrows.adapt.peft_reading import load_adapter
from narrows.kernels.load import load
from narrows.model.hugging_face import naming
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.plan.trained import Trained
from narrows.spec.adapter import Biases, Learning, LowRank, Rule, Target
from narrows.spec.errors import BadInput
from narrows.spec.model import Experts, Latent, ModelSpec, Sigmoid

from .conftest import GPT2, LLAMA, made, tokens, tuned


def experts(**changes: Any) -> Experts:
    return Experts(count=4, chosen=2, width=48, **changes)


LATENT = Latent(kv_rank=32, rope_width=8, value_width=16, query_rank=24)
SPECS: dict[str, ModelSpec] = {
    "experts": msgspec.structs.replace(LLAMA, experts=experts()),
    "shared": msgspec.structs.replace(
        LLAMA, experts=experts(shared=1, dense_layers=1, router_biases=True, gate=Sigmoid())
    ),
    "latent": msgspec.structs.replace(LLAMA, latent=LATENT, kv_heads=4),
    "latent whole": msgspec.structs.replace(
        LLAMA, latent=msgspec.structs.replace(LATENT, query_rank=None), kv_heads=4
    ),
    "bert": msgspec.structs.replace(
        GPT2, causal=False, token_types=2, embedding_norm=True, pooler=True, block_norms="stream",
        final_norm=False, head_transform=True, head_bias=True,
    ),
}  # fmt: skip
EVERY: tuple[Target, ...] = ("query", "key", "value", "out", "experts")
LEARNING = {
    "lora": Learning(adapter=LowRank(rank=8)),
    "dora": Learning(adapter=LowRank(rank=8, rule="dora", targets=("out",))),
    "biases": Learning(adapter=Biases()),
    "frozen": Learning(frozen=("layers.0", "norms")),
    "late": Learning(adapter=LowRank(rank=8, dropout=0.1), frozen=("layers.0",)),
}
ROUTED = Learning(adapter=LowRank(rank=8, targets=EVERY))


@pytest.mark.parametrize("learning", LEARNING.values(), ids=LEARNING.keys())
@pytest.mark.parametrize("name", SPECS)
def test_the_plan_knows_what_learns(name: str, learning: Learning) -> None:
    spec = SPECS[name]
    if isinstance(learning.adapter, Biases) and not (spec.biases or spec.head_bias):
        pytest.skip("it has no biases")
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    apply(model, learning)
    found = {n: (p.numel(), p.requires_grad) for n, p in model.named_parameters()}
    assert {p.name: (p.size, p.learns) for p in Trained(spec, learning).parameters} == found


def test_the_plan_knows_experts_own_matrices() -> None:
    spec = SPECS["experts"]
    model = made(spec)
    apply(model, ROUTED)
    found = {n: (p.numel(), p.requires_grad) for n, p in model.named_parameters()}
    assert {p.name: (p.size, p.learns) for p in Trained(spec, ROUTED).parameters} == found
    assert sum(isinstance(each, AdaptedExperts) for each in model.modules()) == 2 * spec.layers


@pytest.mark.parametrize("rule", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("name", SPECS)
def test_an_adapter_begins_as_nothing_and_is_merged(name: str, rule: Rule) -> None:
    spec = SPECS[name]
    model, read = made(spec), tokens(spec)
    before = model(read)
    learning = Learning(adapter=LowRank(rank=8, rule=rule))
    apply(model, learning)
    torch.testing.assert_close(model(read), before, rtol=1e-5, atol=1e-6)
    model = tuned(made(spec), learning)
    assert float((model(read).detach() - before).abs().max()) > 0.01
    assert merge_proven(model, read) < 1e-5
    assert merge(model).spec.parameters == sum(p.numel() for p in model.parameters())


def test_experts_matrices_learn_as_the_merged_ones_would() -> None:
    """A gradient of A or B is that of the sum it is in, by the chain rule."""
    spec = SPECS["experts"]
    model, read = tuned(made(spec), ROUTED), tokens(spec)
    whole = tuned(made(spec), ROUTED)
    own = {n: m for n, m in model.named_modules() if isinstance(m, AdaptedExperts)}
    merge(whole)
    for each in whole.parameters():
        each.requires_grad_()
    for each in (model, whole):
        each.loss(read, read, chunk=16, scale=0.01).backward()
    for name, each in own.items():
        summed = whole.get_submodule(name).weight.grad
        assert isinstance(summed, torch.Tensor) and each.a.weight.grad is not None
        a_ERD, b_EXR = each.a.weight.detach(), each.b.detach()
        scale = each.adapter.scale
        torch.testing.assert_close(each.b.grad, scale * summed @ a_ERD.mT, rtol=1e-3, atol=1e-6)
        expected = scale * b_EXR.mT @ summed
        torch.testing.assert_close(each.a.weight.grad, expected, rtol=1e-3, atol=1e-6)
        assert each.weight.grad is None


@pytest.mark.parametrize(
    ("adapter", "match"),
    [
        (LowRank(base="int8"), "not kept in fewer bits"),
        (LowRank(targets=EVERY, rule="dora"), "low-rank products alone"),
        (LowRank(targets=EVERY, dropout=0.1), "low-rank products alone"),
        (LowRank(targets=("down",)), "has down, which the model has not"),
    ],
)
def test_what_experts_cannot_have_is_refused(adapter: LowRank, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        adapter.settled(SPECS["experts"])


def test_experts_own_matrices_are_not_written_for_peft(tmp_path: Path) -> None:
    model = tuned(made(SPECS["experts"]), ROUTED)
    with pytest.raises(BadInput, match="experts.each.up for something of all experts"):
        write_adapter(tmp_path, model, naming("mixtral", model.spec))
    model = tuned(made(SPECS["shared"]), Learning(adapter=LowRank(rank=8)))
    with pytest.raises(BadInput, match="blocks.0.up for something of all experts"):
        write_adapter(tmp_path, model, naming("deepseek_v3", model.spec))
    assert not list(tmp_path.iterdir())


# Beside transformers and PEFT.
SIZES = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 40, "initializer_range": 0.1,
}  # fmt: skip
KEYS: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "Qwen3MoeForCausalLM": {
        "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
        "moe_intermediate_size": 32, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "DeepseekV3ForCausalLM": {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "moe_intermediate_size": 32, "n_shared_experts": 1, "q_lora_rank": 24,
        "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
        "first_k_dense_replace": 1,
    },
    "Glm4ForCausalLM": {
        "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True, "pad_token_id": 0,
    },
    "BertForMaskedLM": {},
    "BertForSequenceClassification": {"num_labels": 3},
    "RobertaForSequenceClassification": {"num_labels": 3},
    "LlamaForSequenceClassification": {"num_labels": 3, "num_key_value_heads": 2},
    "GPT2ForSequenceClassification": {"num_labels": 3},
}  # fmt: skip


ONLY: dict[str, tuple[Target, ...]] = {
    "DeepseekV3ForCausalLM": ("query_down", "query_up", "key_value_down", "key_value_up", "out"),
}  # fmt: skip


def theirs(name: str, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    kind = name.partition("For")[0]
    sizes = {"num_labels": 3, **({} if kind == "GPT2" else SIZES)}
    if kind == "GPT2":
        sizes |= {"vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 40}
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **KEYS[name]})
    model = getattr(transformers, name)(config)
    model.save_pretrained(folder)
    return model.eval()


def ours(folder: Path) -> tuple[Transformer, Any]:
    original = opened(folder)
    return build(original, torch.float32, torch.device("cpu")).eval(), original.naming


def said(model: Transformer, read: torch.Tensor) -> torch.Tensor:
    if not model.spec.classes:
        return model(read)
    x_BTD = model.hidden(read)
    return model.scores(torch.stack([model.summary(x_TD) for x_TD in x_BTD]))


@pytest.mark.parametrize("rule", ["lora", "dora"])
@pytest.mark.parametrize("name", KEYS)
@torch.no_grad()
def test_peft_computes_what_we_wrote_and_we_what_it_wrote(
    name: str, rule: Rule, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    reference = theirs(name, tmp_path / "base")
    model, names = ours(tmp_path / "base")
    read = tokens(model.spec, 1)
    plain = said(model, read)
    assert float((reference(read).logits - plain).abs().max()) < 1e-4
    tuned(model, Learning(adapter=LowRank(rank=4, alpha=6.0, rule=rule, targets=ONLY.get(name))))
    expected = said(model, read)
    assert float((expected - plain).abs().max()) > 0.01
    write_adapter(tmp_path / "adapter", model, names, base=str(tmp_path / "base"))
    found = peft.PeftModel.from_pretrained(reference, str(tmp_path / "adapter")).eval()
    difference = float((found(read).logits - expected).abs().max())
    print(f"{name} {rule}: {difference:.1e}")
    assert difference < 1e-4
    found.save_pretrained(tmp_path / "again")
    again, _ = ours(tmp_path / "base")
    load_adapter(again, tmp_path / "again", names)
    assert float((said(again, read) - expected).abs().max()) < 1e-4
