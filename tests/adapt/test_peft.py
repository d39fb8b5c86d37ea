"""Adapters written and read in PEFT's format: by ourselves, and where it is installed by PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from narrows.adapt.merge import merge
from narrows.adapt.peft import BEFORE, write_adapter
from narrows.adapt.peft_reading import load_adapter
from narrows.model.folder import ADAPTER, ADAPTER_CONFIG
from narrows.model.hugging_face import naming
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.spec.adapter import Learning, LowRank, Rule, Target
from narrows.spec.errors import BadInput

from .conftest import GPT2, LLAMA, SPECS, made, tokens, tuned

RULES: tuple[Rule, ...] = ("lora", "rslora", "dora")
SOME: tuple[Target, ...] = ("query", "value", "up", "down")
WIDER = msgspec.structs.replace(LLAMA, width=128)
NAMES = {kind: naming(kind, spec) for kind, spec in SPECS.items()}


@pytest.mark.parametrize("targets", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", SPECS)
def test_what_is_written_is_read_again(
    kind: str, rule: Rule, targets: tuple[Target, ...] | None, tmp_path: Path
) -> None:
    spec, read = SPECS[kind], tokens(SPECS[kind])
    learning = Learning(adapter=LowRank(rank=4, alpha=6.0, rule=rule, targets=targets))
    model = tuned(made(spec), learning)
    write_adapter(tmp_path, model, NAMES[kind], base="some/model")
    again = made(spec)
    found = load_adapter(again, tmp_path, NAMES[kind])
    torch.testing.assert_close(again(read), model(read), rtol=1e-5, atol=1e-6)
    assert isinstance(found.adapter, LowRank) and found.adapter.rule == rule
    if kind == "llama":
        assert learning.adapter is not None
        assert found.adapter == learning.adapter.settled(spec)  # type: ignore[union-attr]
    torch.testing.assert_close(merge(again)(read), model(read), rtol=1e-4, atol=1e-5)


def test_layers_without_an_adapter_stay_without(tmp_path: Path) -> None:
    model = tuned(made(LLAMA), Learning(adapter=LowRank(rank=4), frozen=("layers.0",)))
    write_adapter(tmp_path, model, NAMES["llama"])
    assert json.loads((tmp_path / ADAPTER_CONFIG).read_text())["layers_to_transform"] == [1]
    again = made(LLAMA)
    assert load_adapter(again, tmp_path, NAMES["llama"]).frozen == ("layers.0",)
    torch.testing.assert_close(again(tokens(LLAMA)), model(tokens(LLAMA)))


def changed(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, **changes}))


def test_adapters_of_another_kind_or_model_are_refused(tmp_path: Path) -> None:
    model = tuned(made(LLAMA), Learning(adapter=LowRank(rank=4)))

    def refused(match: str, spec: Any = LLAMA, **changes: Any) -> None:
        write_adapter(tmp_path, model, NAMES["llama"])
        changed(tmp_path, **changes)
        plain = made(spec)
        with pytest.raises(BadInput, match=match):
            load_adapter(plain, tmp_path, NAMES["llama"])
        assert {name for name, _ in plain.named_parameters()} == {
            name for name, _ in made(spec).named_parameters()
        }

    refused("of a IA3 adapter", peft_type="IA3")
    refused("has bias = all", bias="all")
    refused("has modules_to_save", modules_to_save=["lm_head"])
    refused(r"with rank 8 takes \[8, 256\]", r=8)
    refused("lacks the length of", use_dora=True)
    refused("Expected `int`", r="four")
    refused("Expected `int` >= 1", r=0)
    refused("Expected `str`", modules_to_save=[["score"]])
    refused(r'adapter_config.json: "\*.q_proj" is no pattern', rank_pattern={"*.q_proj": 4})
    refused(r"is no pattern of names: global flags", alpha_pattern={"(?i)q_proj": 4})
    refused(r"B of model.layers.0.mlp.down_proj as \[96, 4\]", WIDER)
    (tmp_path / ADAPTER).unlink()
    with pytest.raises(BadInput, match="has no adapter_model.safetensors"):
        load_adapter(made(LLAMA), tmp_path, NAMES["llama"])


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", [], {}])
def test_adapters_that_changed_their_base_are_refused(begun: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path, tuned(made(LLAMA), Learning(adapter=LowRank(rank=4))), NAMES["llama"])
    for plain in (True, False, None, "gaussian", "eva"):
        changed(tmp_path, init_lora_weights=plain)
        load_adapter(made(LLAMA), tmp_path, NAMES["llama"])
    changed(tmp_path, init_lora_weights=begun)
    with pytest.raises(BadInput, match="adapter_config.json has init_lora_weights = ") as caught:
        load_adapter(made(LLAMA), tmp_path, NAMES["llama"])
    assert caught.value.hint and "path_initial_model_for_weight_conversion" in caught.value.hint


def test_tensors_that_belong_nowhere_are_refused(tmp_path: Path) -> None:
    model = tuned(made(GPT2), Learning(adapter=LowRank(rank=4)))
    write_adapter(tmp_path, model, NAMES["gpt2"])
    held = load_file(tmp_path / ADAPTER)
    for name, match in (
        ("base_model.model.lm_head.lora_A.weight", "adapts lm_head"),
        ("base_model.model.transformer.h.0.mlp.c_fc.weight", "no part of a low-rank adapter"),
        (f"{BEFORE}transformer.h.0.mlp.c_fc.lora_A.weight", "in I32, a type of whole numbers"),
    ):
        save_file({**held, name: torch.zeros(4, 64).int()}, tmp_path / ADAPTER)
        with pytest.raises(BadInput, match=match):
            load_adapter(made(GPT2), tmp_path, NAMES["gpt2"])
    with pytest.raises(BadInput, match="no low-rank adapter"):
        write_adapter(tmp_path, made(GPT2), NAMES["gpt2"])


def theirs(kind: str, folder: Path) -> Any:
    """A random model of transformers, in the folder too."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=97, hidden_size=96, num_hidden_layers=2, intermediate_size=128,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=40,
            tie_word_embeddings=True, initializer_range=0.1,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=40, initializer_range=0.1
        )
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model.eval()


def ours(folder: Path) -> tuple[Transformer, Any]:
    original = opened(folder)
    return build(original, torch.float32, torch.device("cpu")).eval(), original.naming


@pytest.mark.parametrize("targets", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", SPECS)
def test_peft_computes_what_we_wrote(
    kind: str, rule: Rule, targets: tuple[Target, ...] | None, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    reference = theirs(kind, tmp_path / "base")
    model, names = ours(tmp_path / "base")
    plain_BTV = model(tokens(model.spec)).detach()
    tuned(model, Learning(adapter=LowRank(rank=4, alpha=6.0, rule=rule, targets=targets)))
    write_adapter(tmp_path / "adapter", model, names, base=str(tmp_path / "base"))
    read = peft.PeftModel.from_pretrained(reference, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found, expected = read(tokens(model.spec)).logits, model(tokens(model.spec))
    print(f"{kind} {rule}: {float((found - expected).abs().max()):.1e}")
    assert float((found - expected).abs().max()) < 1e-4
    assert float((expected - plain_BTV).abs().max()) > 0.1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", SPECS)
def test_we_compute_what_peft_wrote(kind: str, rule: Rule, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    reference = theirs(kind, tmp_path / "base")
    chosen = {"llama": ["q_proj", "v_proj", "gate_proj", "down_proj"],
              "gpt2": ["c_attn", "mlp.c_proj"]}[kind]  # fmt: skip
    pattern = {"llama": {"v_proj": 2}, "gpt2": {"c_attn": 6}}[kind]
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=chosen, use_rslora=rule == "rslora",
        use_dora=rule == "dora", init_lora_weights=False, rank_pattern=pattern,
        fan_in_fan_out=kind == "gpt2",
    )  # fmt: skip
    adapted = peft.get_peft_model(reference, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    model, names = ours(tmp_path / "base")
    plain_BTV = model(tokens(model.spec)).detach()
    load_adapter(model, tmp_path / "adapter", names)
    with torch.no_grad():
        found, expected = model(tokens(model.spec)), adapted(tokens(model.spec)).logits
    print(f"{kind} {rule}: {float((found - expected).abs().max()):.1e}")
    assert float((found - expected).abs().max()) < 1e-4
    assert float((expected - plain_BTV).abs().max()) > 0.1


def test_an_adapter_is_put_on_packed_matrices(tmp_path: Path) -> None:
    model = tuned(made(LLAMA), Learning(adapter=LowRank(rank=4, base="nf4")))
    write_adapter(tmp_path, model, NAMES["llama"])
    again = made(LLAMA)
    load_adapter(again, tmp_path, NAMES["llama"], base="nf4")
    assert torch.equal(again(tokens(LLAMA)), model(tokens(LLAMA)))
