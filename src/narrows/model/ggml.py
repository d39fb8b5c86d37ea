"""What llama.cpp's GGUF files call shapes and weights, told in transformers' terms and ours.

Keys and names: github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from narrows.model.describing import means
from narrows.model.gguf import GGUF
from narrows.model.naming import AS_IS, Lay, Naming
from narrows.model.positions import slowed, turned_width
from narrows.model.settings import Settings
from narrows.model.shapes import Shape, paired_growth
from narrows.model.writing import Outgoing
from narrows.spec.errors import BadInput, nearest
from narrows.spec.model import (
    Banded,
    LayerNorm,
    Linear,
    ModelSpec,
    Paired,
    Rotary,
    Scaling,
    Yarn,
)

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
"""The layers of those that scale queries by width over heads and not by a head's width, as
llama.cpp tells them."""
_TABLE, _ROPE = "token_embd.weight", "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_GROWTH, _OWN = "rope.scaling.attn_factor", "rope.scaling.original_context_length"


def settings(
    facts: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path | str
) -> tuple[str, Settings]:
    """The family by transformers' name, and the keys of its config.json as far as the facts and
    the tensors of the file at `path` tell.

    Raises BadInput where the architecture is not known.
    """
    theirs = facts.get(_ARCHITECTURE)
    if not isinstance(theirs, str) or theirs not in _KINDS:
        guess = nearest(str(theirs), _KINDS)
        hint = f"did you mean {guess}? " if guess else ""
        raise BadInput(
            f"{path} holds a model of the architecture {theirs!r}, which narrows does not know",
            hint=f"{hint}known: {', '.join(_KINDS)}",
        )
    kind = "mixtral" if theirs == "llama" and f"{theirs}.expert_count" in facts else _KINDS[theirs]
    said = {ours: _short(facts[key]) for name, ours in _KEYS.items()
            if (key := f"{theirs}.{name}") in facts}  # fmt: skip
    if _TABLE not in shapes:
        raise BadInput(f"{path} has no {_TABLE}", hint="take a file of a whole model")
    said["vocab_size"] = shapes[_TABLE][0]
    said["tie_word_embeddings"] = "output.weight" not in shapes
    if kind == "gpt2":
        said |= {"n_embd": said.get("hidden_size"), "n_head": said.get("num_attention_heads")}
        said = {name: value for name, value in said.items() if not name.startswith("num_key")}
    if kind == "qwen3_moe":
        said["norm_topk_prob"] = True
    if kind == "phi3" and (turned := facts.get(f"{theirs}.rope.dimension_count")):
        width = said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"]
        said["partial_rotary_factor"] = turned / width
    if kind in _LARGEST and "head_dim" in said:
        said["query_pre_attn_scalar"] = said["head_dim"]
    found = Settings(said, str(path))
    if kind in _LARGEST and said.get("num_hidden_layers") == _LARGEST[kind]:
        width, heads = (found.count(name) for name in ("hidden_size", "num_attention_heads"))
        said["query_pre_attn_scalar"] = width // heads
    said |= _scaling(facts, theirs)
    return kind, found


def stretched(shape: Shape, file: GGUF) -> Shape:
    """The shape with rotations slowed by the factors that the file brings, which it does not tell
    otherwise: of each pair two, or Llama 3's; raises BadInput where they are neither.
    """
    if {_SHORT, _LONG} <= file.tensors.keys() and isinstance(shape["positions"], Rotary):
        return {**shape, "positions": _paired(shape["positions"], shape["context"], file)}
    if _ROPE not in file.tensors or not isinstance(shape["positions"], Rotary):
        return shape
    found_H = torch.empty(file.shape(_ROPE))
    file.read(_ROPE, found_H)
    positions: Rotary = shape["positions"]
    scaling = Banded(factor=float(found_H.max()))
    positions = msgspec.structs.replace(positions, scaling=scaling)
    if not torch.allclose(found_H, _factors(positions, found_H.numel()), rtol=1e-2):
        raise BadInput(
            f"{file.file.path} turns positions by factors that narrows does not know ({_ROPE})",
            hint="take the model's Hugging Face folder, whose config.json tells them",
        )
    return {**shape, "positions": positions}


def _paired(positions: Rotary, context: int, file: GGUF) -> Rotary:
    theirs = file.facts[_ARCHITECTURE]
    own = file.facts.get(f"{theirs}.{_OWN}", context)
    growth = file.facts.get(f"{theirs}.{_GROWTH}") or paired_growth(context, own)
    factors = []
    for name in (_SHORT, _LONG):
        found_H = torch.empty(file.shape(name))
        file.read(name, found_H)
        factors.append(tuple(_short(each) for each in found_H.tolist()))
    scaling = Paired(
        short=factors[0], long=factors[1], positions=own, context=context, growth=_short(growth)
    )
    return msgspec.structs.replace(positions, scaling=scaling)


def kind_of(spec: ModelSpec, first: str | None = None) -> str:
    """The family, `first` before others, whose architecture computes what the spec says; raises
    BadInput where llama.cpp has none.
    """
    shapes = {_TABLE: (spec.vocabulary, spec.width)}
    if not spec.tied_embeddings:
        shapes["output.weight"] = shapes[_TABLE]

    def then(shape: Shape) -> Shape:
        positions, own = shape["positions"], spec.positions
        if not isinstance(positions, Rotary) or not isinstance(own, Rotary) or not factors(spec):
            return shape
        return {**shape, "positions": msgspec.structs.replace(positions, scaling=own.scaling)}

    for kind in dict.fromkeys((first, *NAMINGS)):
        # llama.cpp reads a window of Phi 3 and attends to all: no place for others' windows.
        if kind in NAMINGS and not (kind == "phi3" != first and spec.window):
            read = settings(facts(kind, spec), shapes, "the file")
            if read[0] == kind and means(spec, *read, then=then):
                return kind
    raise BadInput(
        "no architecture of GGUF files that narrows knows computes this model",
        causes=[f"known: {', '.join(NAMINGS)}"],
        hint="export a Hugging Face folder: narrows export MODEL --to FOLDER",
    )


def facts(kind: str, spec: ModelSpec) -> dict[str, Any]:
    """What a file of the family says of a model: `settings` the other way round."""
    theirs = "llama" if kind == "mixtral" else {ours: name for name, ours in _KINDS.items()}[kind]
    norm = "layer_norm" if isinstance(spec.norm, LayerNorm) else "layer_norm_rms"
    experts, positions = spec.experts, spec.positions
    said: dict[str, Any] = {
        "vocab_size": spec.vocabulary,
        "context_length": spec.context,
        "embedding_length": spec.width,
        "block_count": spec.layers,
        "feed_forward_length": spec.feed_forward_width,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        f"attention.{norm}_epsilon": spec.norm.epsilon,
        "attention.sliding_window": spec.window.size if spec.window else None,
        "attn_logit_softcapping": spec.score_cap,
        "final_logit_softcapping": spec.logit_cap,
    }
    if isinstance(positions, Rotary):
        said |= {"rope.dimension_count": turned_width(spec), "rope.freq_base": positions.base}
        said |= dict.fromkeys(("attention.key_length", "attention.value_length"), spec.head_width)
        said |= _stretching(positions.scaling)
    if experts is not None:
        said |= {"expert_count": experts.count, "expert_used_count": experts.chosen}
        said |= {} if kind == "mixtral" else {"expert_feed_forward_length": experts.width}
    given = {f"{theirs}.{key}": value for key, value in said.items() if value is not None}
    return {_ARCHITECTURE: theirs, **given}


def factors(spec: ModelSpec) -> list[Outgoing]:
    """By what rotations are slowed that the file has tensors of; none for others."""
    positions = spec.positions
    if not isinstance(positions, Rotary):
        return []
    half = turned_width(spec) // 2
    if isinstance(paired := positions.scaling, Paired):
        return [Outgoing(_SHORT, (half,), lambda: torch.tensor(paired.short)),
                Outgoing(_LONG, (half,), lambda: torch.tensor(paired.long))]  # fmt: skip
    if not isinstance(positions.scaling, Banded):
        return []
    return [Outgoing(_ROPE, (half,), lambda: _factors(positions, half))]


def _factors(positions: Rotary, half: int) -> Tensor:
    assert isinstance(positions.scaling, Banded)
    frequencies_H = positions.base ** -(torch.arange(half) / half)
    return frequencies_H / slowed(frequencies_H, positions.base, positions.scaling)


def _stretching(scaling: Scaling | None) -> dict[str, Any]:
    match scaling:
        case Linear(factor=factor):
            return {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case Yarn(factor=factor, positions=own):
            return {"rope.scaling.type": "yarn", "rope.scaling.factor": factor, _OWN: own}
        case Paired(positions=own, growth=growth, context=context):
            return {_GROWTH: growth, _OWN: own, "context_length": context}
    return {}


def _scaling(facts: Mapping[str, Any], theirs: str) -> dict[str, Any]:
    kind = facts.get(f"{theirs}.rope.scaling.type", "none")
    if kind == "none":
        return {}
    told = {"rope_type": kind, "factor": facts.get(f"{theirs}.rope.scaling.factor", 1.0)}
    own = facts.get(f"{theirs}.{_OWN}")
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
    passed_over=(r"^rope_(freqs|factors_short|factors_long)\.weight$",),
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
