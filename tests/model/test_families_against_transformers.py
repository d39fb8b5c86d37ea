"""Each family's config.json and weights, read as ours, against transformers' own model in fp32."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.configuration import read_config
from narrows.model.folder import files
from narrows.model.hugging_face import naming
from narrows.model.reading import fill
from narrows.model.safetensors import Safetensors
from narrows.model.transformer import Transformer
from narrows.spec.model import ModelSpec

from .families import CONFIGS, VOCABULARY

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

T = 40
ENCODERS = ("Bert", "Roberta", "XLMRoberta")

# Their part of a block: ours, and its place where ours joins several.
PARTS = {
    "self_attn.q_proj": ("qkv", 0), "self_attn.k_proj": ("qkv", 1), "self_attn.v_proj": ("qkv", 2),
    "self_attn.qkv_proj": ("qkv", 0), "attn.c_attn": ("qkv", 0),
    "self_attention.query_key_value": ("qkv", 0),
    "attention.self.query": ("qkv", 0), "attention.self.key": ("qkv", 1),
    "attention.self.value": ("qkv", 2), "attention.output.dense": ("out", 0),
    "self_attn.o_proj": ("out", 0), "self_attn.dense": ("out", 0), "attn.c_proj": ("out", 0),
    "self_attn.out_proj": ("out", 0), "self_attention.dense": ("out", 0),
    "self_attn.q_norm": ("query_norms.query", 0), "self_attn.k_norm": ("query_norms.key", 0),
    "self_attn.q_a_proj": ("qkv.query_down", 0), "self_attn.q_b_proj": ("qkv.query_up", 0),
    "self_attn.q_a_layernorm": ("qkv.query_norm", 0),
    "self_attn.kv_a_proj_with_mqa": ("qkv.key_value_down", 0),
    "self_attn.kv_a_layernorm": ("qkv.key_value_norm", 0),
    "self_attn.kv_b_proj": ("qkv.key_value_up", 0), "self_attn": ("", 0),
    "mlp.gate_proj": ("up", 0), "mlp.up_proj": ("up", 1), "mlp.gate_up_proj": ("up", 0),
    "mlp.c_fc": ("up", 0), "mlp.fc1": ("up", 0), "fc1": ("up", 0), "intermediate.dense": ("up", 0),
    "mlp.dense_h_to_4h": ("up", 0), "mlp.dense_4h_to_h": ("down", 0), "output.dense": ("down", 0),
    "mlp.down_proj": ("down", 0), "mlp.c_proj": ("down", 0), "mlp.fc2": ("down", 0),
    "fc2": ("down", 0), "mlp.gate": ("experts.router", 0), "mlp.router": ("experts.router", 0),
    "mlp.shared_experts.gate_proj": ("experts.shared_up", 0),
    "mlp.shared_experts.up_proj": ("experts.shared_up", 1),
    "mlp.shared_experts.down_proj": ("experts.shared_down", 0),
    "ln_1": ("norm_attention", 0), "ln_2": ("norm_feed_forward", 0),
    "input_layernorm": ("norm_attention", 0), "self_attn_layer_norm": ("norm_attention", 0),
    "attention.output.LayerNorm": ("norm_attention", 0), "output.LayerNorm":
    ("norm_feed_forward", 0), "final_layer_norm": ("norm_feed_forward", 0),
    "post_attention_layernorm": ("norm_feed_forward", 0),
    "layer.0.SelfAttention.q": ("qkv", 0), "layer.0.SelfAttention.k": ("qkv", 1),
    "layer.0.SelfAttention.v": ("qkv", 2), "layer.0.SelfAttention.o": ("out", 0),
    "layer.0.layer_norm": ("norm_attention", 0),
    "layer.1.EncDecAttention.q": ("crossing.query", 0),
    "layer.1.EncDecAttention.k": ("crossing.key_value", 0),
    "layer.1.EncDecAttention.v": ("crossing.key_value", 1),
    "layer.1.EncDecAttention.o": ("crossing.out", 0),
    "DenseReluDense.wi": ("up", 0), "DenseReluDense.wi_0": ("up", 0),
    "DenseReluDense.wi_1": ("up", 1), "DenseReluDense.wo": ("down", 0),
}  # fmt: skip
BEHIND = {"post_attention_layernorm": ("norm_attention", 0)}
BOTH = {
    "post_attention_layernorm": ("norm_attention_out", 0),
    "pre_feedforward_layernorm": ("norm_feed_forward", 0),
    "post_feedforward_layernorm": ("norm_feed_forward_out", 0),
}
WHOLE = {
    "embed_tokens": "tokens", "wte": "tokens", "word_embeddings": "tokens", "shared": "tokens",
    "embeddings.word_embeddings": "tokens", "wpe": "positions", "embed_positions": "positions",
    "embeddings.position_embeddings": "positions", "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm_embedding", "word_embeddings_layernorm": "norm_embedding",
    "norm": "norm", "ln_f": "norm", "final_layernorm": "norm", "final_layer_norm": "norm",
    "encoder.final_layer_norm": "encoder.norm", "decoder.final_layer_norm": "norm",
    "pooler.dense": "pooler", "lm_head": "head",
}  # fmt: skip
BUCKETS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def ours(theirs: Any, spec: ModelSpec) -> Transformer:
    """Our model of the spec with their weights."""
    joined: dict[str, dict[int, Tensor]] = {}
    for name, weight in theirs.state_dict().items():
        stem, place = our_name(name, spec)
        if stem:
            joined.setdefault(stem, {})[place] = fitted(name, weight, spec)
    state = {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in joined.items()}
    model = Transformer(spec, load("torch"))
    if spec.tied_embeddings:
        state.pop("head.weight", None)
    model.load_state_dict(state)
    return model.eval()


def our_name(name: str, spec: ModelSpec) -> tuple[str, int]:
    """Ours for their name, or "" for what we have under another."""
    name = re.sub(r"^(model|transformer|bert)\.", "", name)
    if name.endswith(BUCKETS):
        return ("encoder." if name.startswith("encoder") else "") + "relative.weight", 0
    stem, _, kind = name.rpartition(".")
    found = re.match(r"(?:(encoder|decoder)\.)?(?:layers|layer|h|block)\.(\d+)\.(.+)", name)
    if found is None:
        stem = stem if spec.encoder_layers else stem.removeprefix("decoder.")
        if stem == "lm_head" and kind == "bias":
            return "head_bias", 0
        return (f"{WHOLE[stem]}.{kind}" if stem in WHOLE else ""), 0
    stack, layer, rest = found.groups()
    inner, _, kind = rest.rpartition(".")
    parts = {**PARTS, **{"both": BOTH, "behind": BEHIND}.get(spec.block_norms, {})}
    if spec.block_norms == "behind":
        parts["post_feedforward_layernorm"] = ("norm_feed_forward", 0)
    if "experts." in rest and "shared" not in rest:
        half = {"gate_up_proj": "up", "down_proj": "down"}[kind.removesuffix("_bias")]
        part, place = f"experts.each.{half}", 0
        kind = "bias" if kind.endswith("_bias") else "weight"
    elif spec.encoder_layers and "DenseReluDense" in rest:
        part, place = parts[inner.split(".", 2)[2]]
    elif spec.encoder_layers and rest.endswith("layer_norm.weight"):
        decoder = ("norm_attention", "norm_crossing", "norm_feed_forward")
        encoder = ("norm_attention", "norm_feed_forward")
        part, place = (encoder if stack == "encoder" else decoder)[int(rest.split(".")[1])], 0
    elif spec.latent and inner == "self_attn.q_proj":
        part, place = "qkv.query", 0
    else:
        part, place = parts[inner]
    kind = "bias" if kind == "e_score_correction_bias" else kind
    prefix = "encoder." if stack == "encoder" and spec.encoder_layers else ""
    return f"{prefix}blocks.{layer}.{part}.{kind}".replace("..", "."), place


def fitted(name: str, weight: Tensor, spec: ModelSpec) -> Tensor:
    """Their weight as ours lies."""
    if ".c_" in name and weight.ndim == 2:
        return weight.t()  # GPT-2 stores matrices input by output.
    if "query_key_value" in name:  # BLOOM stores queries, keys and values head by head.
        parts = weight.unflatten(0, (spec.heads, 3, spec.head_width)).transpose(0, 1)
        return parts.flatten(0, 2)
    if spec.sinks and "experts." in name:  # gpt-oss: input by output, gate and up by turns.
        weight = weight.transpose(1, 2) if weight.ndim == 3 else weight
        return torch.cat([weight[:, ::2], weight[:, 1::2]], 1) if "gate_up" in name else weight
    if spec.block_norms == "both" and "norm" in name:
        return weight + 1.0  # Gemma stores how far its norms are from one.
    if spec.latent:  # DeepSeek turns neighbours, we turn halves.
        R = spec.latent.rope_width
        halves = torch.cat([torch.arange(0, R, 2), torch.arange(1, R, 2)])
        if "kv_a_proj" in name:
            return torch.cat([weight[:-R], weight[-R:][halves]])
        if "q_b_proj" in name or "q_proj" in name:
            heads = weight.unflatten(0, (spec.heads, -1))
            return torch.cat([heads[:, :-R], heads[:, -R:][:, halves]], 1).flatten(0, 1)
    return weight


def built(kind: str, settings: dict[str, Any]) -> Any:
    """Their model with weights that all matter."""
    torch.manual_seed(0)
    config = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    config = config(**settings, attn_implementation="eager")
    suffix = {**dict.fromkeys(ENCODERS, "Model"), "T5": "ForConditionalGeneration",
              "GPT2": "LMHeadModel"}  # fmt: skip
    theirs = getattr(transformers, kind + suffix.get(kind, "ForCausalLM"))(config).eval()
    with torch.no_grad():
        for name, weight in theirs.state_dict().items():
            if weight.is_floating_point():
                ones = "norm" in name.lower() or "ln_" in name
                centre = 1.0 if ones and name.endswith("weight") and "Gemma" not in kind else 0.0
                weight.copy_(centre + 0.2 * torch.randn_like(weight))
    return theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    kind, settings = CONFIGS[name]
    theirs = built(kind, settings)
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    spec = read_config(tmp_path)
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    model.to_empty(device="cpu").eval()
    family = json.loads((tmp_path / "config.json").read_text())["model_type"]
    source = Safetensors(files(tmp_path))
    fill(dict(model.named_parameters()), spec, naming(family, spec), source)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    tokens_BT = torch.randint(3, VOCABULARY, (2, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if kind in ENCODERS:
            types_BT = torch.arange(T).div(15, rounding_mode="floor").expand(2, T)
            expected = theirs(tokens_BT, token_type_ids=types_BT)
            found = model.hidden(tokens_BT, types_BT=types_BT)
            torch.testing.assert_close(
                model.pooled(found), expected.pooler_output, rtol=1e-4, atol=1e-4
            )
            wanted = expected.last_hidden_state
        elif spec.encoder_layers:
            source_BS = tokens_BT.flip(1)[:, :30]
            wanted = theirs(input_ids=source_BS, decoder_input_ids=tokens_BT).logits
            found = model(tokens_BT, source_BS)
        else:
            wanted, found = theirs(tokens_BT).logits, model(tokens_BT)
    assert wanted.std() > 0.1
    print(f"{name}: up to {float(wanted.abs().max()):.2f}, largest difference "
          f"{float((found - wanted).abs().max()):.1e}")  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
