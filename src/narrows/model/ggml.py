"""What llama.cpp's GGUF files call shapes and weights, told in transformers' terms and ours.

Keys and names: github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor

from narrows.model.gguf import GGUF
from narrows.model.naming import AS_IS, Lay, Naming
from narrows.model.positions import slowed
from narrows.model.settings import Settings
from narrows.model.shapes import Shape
from narrows.spec.errors import BadInput, nearest
from narrows.spec.model import Banded, ModelSpec, Rotary

_ARCHITECTURE = "general.architecture"
_KINDS = {
    "gemma2": "gemma2", "gemma3": "gemma3_text", "gpt2": "gpt2", "llama": "llama",
    "olmo2": "olmo2", "phi3": "phi3", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe",
}  # fmt: skip
"""Their architectures by transformers' names."""
_KEYS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon", "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window", "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
_LARGEST = {"gemma2": 46, "gemma3_text": 62}
"""The layers of those that scale queries by width over heads, as llama.cpp tells them."""
_TABLE, _ROPE = "token_embd.weight", "rope_freqs.weight"


def settings(file: GGUF) -> tuple[str, Settings]:
    """The family by transformers' name, and the keys of its config.json as far as the file tells.

    Raises BadInput where the architecture is not known.
    """
    path, facts = file.file.path, file.facts
    theirs = facts.get(_ARCHITECTURE)
    if theirs not in _KINDS:
        guess = nearest(str(theirs), _KINDS)
        hint = f"did you mean {guess}? " if guess else ""
        raise BadInput(
            f"{path} holds a model of the architecture {theirs!r}, which narrows does not know",
            hint=f"{hint}known: {', '.join(_KINDS)}",
        )
    kind = "mixtral" if theirs == "llama" and f"{theirs}.expert_count" in facts else _KINDS[theirs]
    said = {ours: _short(facts[key]) for name, ours in _KEYS.items()
            if (key := f"{theirs}.{name}") in facts}  # fmt: skip
    if _TABLE not in file.tensors:
        raise BadInput(f"{path} has no {_TABLE}", hint="take a file of a whole model")
    said["vocab_size"] = file.tensors[_TABLE].shape[0]
    said["tie_word_embeddings"] = "output.weight" not in file.tensors
    if kind == "gpt2":
        said |= {"n_embd": said.get("hidden_size"), "n_head": said.get("num_attention_heads")}
        said = {name: value for name, value in said.items() if not name.startswith("num_key")}
    if kind == "qwen3_moe":
        said["norm_topk_prob"] = True
    if said.get("num_hidden_layers") == _LARGEST.get(kind):
        said["query_pre_attn_scalar"] = said["hidden_size"] // said["num_attention_heads"]
    said |= _scaling(facts, theirs)
    return kind, Settings(said, str(path))


def stretched(shape: Shape, file: GGUF) -> Shape:
    """The shape with Llama 3's slowed rotations where the file brings their factors, which it does
    not tell otherwise; raises BadInput where they are not Llama 3's.
    """
    if _ROPE not in file.tensors or not isinstance(shape["positions"], Rotary):
        return shape
    found_H = torch.empty(file.shape(_ROPE))
    file.read(_ROPE, found_H)
    positions: Rotary = shape["positions"]
    scaling = Banded(factor=float(found_H.max()), low=1.0, high=4.0, positions=8192)
    half = found_H.numel()
    frequencies_H = positions.base ** -(torch.arange(half) / half)
    expected_H = frequencies_H / slowed(frequencies_H, positions.base, scaling)
    if not torch.allclose(found_H, expected_H, rtol=1e-2):
        raise BadInput(
            f"{file.file.path} turns positions by factors that narrows does not know ({_ROPE})",
            hint="take the model's Hugging Face folder, whose config.json tells them",
        )
    return {**shape, "positions": msgspec.structs.replace(positions, scaling=scaling)}


def _scaling(facts: dict[str, Any], theirs: str) -> dict[str, Any]:
    kind = facts.get(f"{theirs}.rope.scaling.type", "none")
    if kind == "none":
        return {}
    told = {"rope_type": kind, "factor": facts.get(f"{theirs}.rope.scaling.factor", 1.0)}
    own = facts.get(f"{theirs}.rope.scaling.original_context_length")
    if own is not None:
        told["original_max_position_embeddings"] = own
    return {"rope_scaling": told}


def _short(value: Any) -> Any:
    """Numbers of the file are fp32: 1e-5 and not 9.999999747378752e-06."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbours where we turn halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _halves(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _queries(theirs: Tensor, spec: ModelSpec) -> Tensor:
    return _neighbours(theirs, spec.heads)


def _keys(theirs: Tensor, spec: ModelSpec) -> Tensor:
    return _neighbours(theirs, spec.kv_heads)


_TURNED = (
    Lay(_queries, lambda ours, spec: _halves(ours, spec.heads)),
    Lay(_keys, lambda ours, spec: _halves(ours, spec.kv_heads)),
    AS_IS,
)
_PLAIN = Naming(
    block="blk.{}",
    whole={"tokens": "token_embd", "norm": "output_norm", "head": "output"},
    within={
        "qkv": ("attn_q", "attn_k", "attn_v"),
        "out": ("attn_output",),
        "query_norms.query": ("attn_q_norm",),
        "query_norms.key": ("attn_k_norm",),
        "norm_attention": ("attn_norm",),
        "norm_feed_forward": ("ffn_norm",),
        "up": ("ffn_gate", "ffn_up"),
        "down": ("ffn_down",),
        "experts.router": ("ffn_gate_inp",),
        "experts.each.up": ("ffn_gate_exps", "ffn_up_exps"),
        "experts.each.down": ("ffn_down_exps",),
    },
    passed_over=(r"^rope_freqs\.weight$",),
)
_FUSED = _PLAIN.but(within={"qkv": ("attn_qkv",), "up": ("ffn_up",)})
_BOTH = _PLAIN.but(
    within={
        "norm_attention_out": ("post_attention_norm",),
        "norm_feed_forward_out": ("post_ffw_norm",),
    }
)
NAMINGS: dict[str, Naming] = {
    **dict.fromkeys(("llama", "mixtral"), _PLAIN.but(lays={"qkv": _TURNED})),
    **dict.fromkeys(("qwen2", "qwen3", "qwen3_moe"), _PLAIN),
    **dict.fromkeys(("gemma2", "gemma3_text"), _BOTH),
    "gpt2": _FUSED.but(whole={"positions": "position_embd"}),
    "olmo2": _PLAIN.but(
        within={
            "norm_attention": ("post_attention_norm",),
            "norm_feed_forward": ("post_ffw_norm",),
        }
    ),
    "phi3": _FUSED,
}
"""By transformers' name of the family."""
