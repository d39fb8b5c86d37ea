"""What transformers calls the weights of each family, and how they lie there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from narrows.model.naming import AS_IS, Lay, Naming
from narrows.model.positions import turned_width
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec

_NO_WEIGHTS = (r"rotary_emb\.inv_freq$", r"position_ids$", r"\.masked_bias$", r"\.attn\.bias$")
_OTHERS = (
    r"^vision_tower\.",
    r"^multi_modal_projector\.",
    r"^model\.vision",
    r"^model\.multi_modal",
)


def _transposed(weight: Tensor, spec: ModelSpec) -> Tensor:
    """GPT-2 and gpt-oss keep matrices input by output."""
    return weight.transpose(-1, -2) if weight.ndim > 1 else weight


def _from_heads(weight: Tensor, spec: ModelSpec) -> Tensor:
    """BLOOM keeps queries, keys and values head by head."""
    return weight.unflatten(0, (spec.heads, 3, spec.head_width)).transpose(0, 1).flatten(0, 2)


def _to_heads(weight: Tensor, spec: ModelSpec) -> Tensor:
    return weight.unflatten(0, (3, spec.heads, spec.head_width)).transpose(0, 1).flatten(0, 2)


def _from_zero(weight: Tensor, spec: ModelSpec) -> Tensor:
    """Gemma keeps how far its norms are from one."""
    return weight.float() + 1.0


def _to_zero(weight: Tensor, spec: ModelSpec) -> Tensor:
    return weight.float() - 1.0


def _from_turns(weight: Tensor, spec: ModelSpec) -> Tensor:
    """gpt-oss keeps gate and up by turns, input by output."""
    rows = weight if weight.ndim == 2 else weight.transpose(1, 2)
    return torch.cat([rows[:, ::2], rows[:, 1::2]], 1)


def _to_turns(weight: Tensor, spec: ModelSpec) -> Tensor:
    turns = torch.stack(weight.chunk(2, 1), 2).flatten(1, 2)
    return turns if weight.ndim == 2 else turns.transpose(1, 2)


def _halves(width: int) -> Tensor:
    return torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])


def _key_halves(weight: Tensor, order: Tensor) -> Tensor:
    R = order.numel()
    return torch.cat([weight[:-R], weight[-R:][order]])


def _query_halves(weight: Tensor, spec: ModelSpec, order: Tensor) -> Tensor:
    heads, R = weight.unflatten(0, (spec.heads, -1)), order.numel()
    return torch.cat([heads[:, :-R], heads[:, -R:][:, order]], 1).flatten(0, 1)


def _turned(weight: Tensor, heads: int, order: Tensor) -> Tensor:
    """The dimensions of each head that positions turn, which come first, in that order."""
    rows, R = weight.unflatten(0, (heads, -1)), order.numel()
    return torch.cat([rows[:, :R][:, order], rows[:, R:]], 1).flatten(0, 1)


def _rope_width(spec: ModelSpec) -> int:
    assert spec.latent is not None
    return spec.latent.rope_width


TRANSPOSED = Lay(_transposed, _transposed)
HEAD_BY_HEAD = Lay(_from_heads, _to_heads)
FROM_ZERO = Lay(_from_zero, _to_zero)
BY_TURNS = Lay(_from_turns, _to_turns)
# DeepSeek turns neighbours, we turn halves.
NEIGHBOURS_KEY = Lay(
    lambda theirs, spec: _key_halves(theirs, _halves(_rope_width(spec))),
    lambda ours, spec: _key_halves(ours, _halves(_rope_width(spec)).argsort()),
)
NEIGHBOURS_QUERY = Lay(
    lambda theirs, spec: _query_halves(theirs, spec, _halves(_rope_width(spec))),
    lambda ours, spec: _query_halves(ours, spec, _halves(_rope_width(spec)).argsort()),
)
# GLM and ERNIE turn neighbours, too, and not of all dimensions.
NEIGHBOURS = (
    Lay(
        lambda theirs, spec: _turned(theirs, spec.heads, _halves(turned_width(spec))),
        lambda ours, spec: _turned(ours, spec.heads, _halves(turned_width(spec)).argsort()),
    ),
    Lay(
        lambda theirs, spec: _turned(theirs, spec.kv_heads, _halves(turned_width(spec))),
        lambda ours, spec: _turned(ours, spec.kv_heads, _halves(turned_width(spec)).argsort()),
    ),
    AS_IS,
)

LLAMA = Naming(
    block="model.layers.{}",
    whole={
        "tokens": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "score": "score",
    },
    within={
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.o_proj",),
        "query_norms.query": ("self_attn.q_norm",),
        "query_norms.key": ("self_attn.k_norm",),
        "norm_attention": ("input_layernorm",),
        "norm_feed_forward": ("post_attention_layernorm",),
        "up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    },
    before=("model.language_model.", "language_model.model.", "language_model.", "model."),
    passed_over=_NO_WEIGHTS,
    left_out=_OTHERS,
)
_GPT2 = Naming(
    block="transformer.h.{}",
    whole={
        "tokens": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f",
        "head": "lm_head", "score": "score",
    },
    within={
        "qkv": ("attn.c_attn",), "out": ("attn.c_proj",), "up": ("mlp.c_fc",),
        "down": ("mlp.c_proj",), "norm_attention": ("ln_1",), "norm_feed_forward": ("ln_2",),
    },
    lays=dict.fromkeys(("qkv", "out", "up", "down"), (TRANSPOSED,)),
    before=("transformer.",),
    passed_over=_NO_WEIGHTS,
)  # fmt: skip
_BERT = Naming(
    block="bert.encoder.layer.{}",
    whole={
        "tokens": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "types": "bert.embeddings.token_type_embeddings",
        "norm_embedding": "bert.embeddings.LayerNorm",
        "pooler": "bert.pooler.dense", "score": "classifier",
        "transform": "cls.predictions.transform.dense",
        "norm_transform": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions.decoder", "head_bias": "cls.predictions.bias",
    },
    within={
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "out": ("attention.output.dense",), "norm_attention": ("attention.output.LayerNorm",),
        "up": ("intermediate.dense",), "down": ("output.dense",),
        "norm_feed_forward": ("output.LayerNorm",),
    },
    before=("bert.",),
    passed_over=(*_NO_WEIGHTS, r"^cls\.predictions\.decoder\.bias$"),
    left_out=(r"^cls\.seq_relationship\.",),
)  # fmt: skip
_ROBERTA = replace(
    _BERT.but(
        whole={
            **{ours: theirs.replace("bert.", "roberta.", 1) for ours, theirs in _BERT.whole.items()
               if theirs.startswith("bert.")},
            "score": "classifier.out_proj", "transform": "lm_head.dense",
            "norm_transform": "lm_head.layer_norm", "head": "lm_head.decoder",
            "head_bias": "lm_head.bias",
        },
    ),
    block="roberta.encoder.layer.{}",
    before=("roberta.",),
    passed_over=(*_NO_WEIGHTS, r"^lm_head\.decoder\.bias$"),
    left_out=(),
)  # fmt: skip
_OPT = Naming(
    block="model.decoder.layers.{}",
    whole={
        "tokens": "model.decoder.embed_tokens", "positions": "model.decoder.embed_positions",
        "norm": "model.decoder.final_layer_norm", "head": "lm_head",
    },
    within={
        "qkv": LLAMA.within["qkv"], "out": ("self_attn.out_proj",), "up": ("fc1",),
        "down": ("fc2",), "norm_attention": ("self_attn_layer_norm",),
        "norm_feed_forward": ("final_layer_norm",),
    },
    before=("model.decoder.", "decoder."),
    passed_over=_NO_WEIGHTS,
)  # fmt: skip
_BLOOM = Naming(
    block="transformer.h.{}",
    whole={
        "tokens": "transformer.word_embeddings", "norm": "transformer.ln_f", "head": "lm_head",
        "norm_embedding": "transformer.word_embeddings_layernorm",
    },
    within={
        "qkv": ("self_attention.query_key_value",), "out": ("self_attention.dense",),
        "up": ("mlp.dense_h_to_4h",), "down": ("mlp.dense_4h_to_h",),
        "norm_attention": ("input_layernorm",),
        "norm_feed_forward": ("post_attention_layernorm",),
    },
    lays={"qkv": (HEAD_BY_HEAD,)},
    before=("transformer.",),
    passed_over=_NO_WEIGHTS,
)  # fmt: skip
_T5_ATTENTION = {
    "qkv": tuple(f"layer.0.SelfAttention.{each}" for each in "qkv"),
    "out": ("layer.0.SelfAttention.o",), "norm_attention": ("layer.0.layer_norm",),
}  # fmt: skip
_T5_BUCKETS = "block.0.layer.0.SelfAttention.relative_attention_bias"


def _t5_feed_forward(at: int, up: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    layer = f"layer.{at}"
    return {
        "up": tuple(f"{layer}.DenseReluDense.{each}" for each in up),
        "down": (f"{layer}.DenseReluDense.wo",), "norm_feed_forward": (f"{layer}.layer_norm",),
    }  # fmt: skip


def _t5(up: tuple[str, ...]) -> Naming:
    return Naming(
        block="decoder.block.{}",
        encoder="encoder.block.{}",
        whole={
            "tokens": "shared", "norm": "decoder.final_layer_norm", "head": "lm_head",
            "encoder.norm": "encoder.final_layer_norm", "relative": f"decoder.{_T5_BUCKETS}",
            "encoder.relative": f"encoder.{_T5_BUCKETS}",
        },
        within={
            **_T5_ATTENTION,
            "crossing.query": ("layer.1.EncDecAttention.q",),
            "crossing.key_value": ("layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
            "crossing.out": ("layer.1.EncDecAttention.o",),
            "norm_crossing": ("layer.1.layer_norm",),
            **_t5_feed_forward(2, up),
        },
        encoding={**_T5_ATTENTION, **_t5_feed_forward(1, up)},
        passed_over=(*_NO_WEIGHTS, r"coder\.embed_tokens\.weight$"),
    )  # fmt: skip


_BOTH_NORMS = {
    "norm_attention_out": ("post_attention_layernorm",),
    "norm_feed_forward": ("pre_feedforward_layernorm",),
    "norm_feed_forward_out": ("post_feedforward_layernorm",),
}
_GEMMA = LLAMA.but(
    within=_BOTH_NORMS,
    lays=dict.fromkeys(
        ("norm", "norm_attention", *_BOTH_NORMS, "query_norms.query", "query_norms.key"),
        (FROM_ZERO,),
    ),
)  # fmt: skip
_EXPERTS = {
    "experts.router": ("mlp.gate",),
    "experts.each.up": ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
    "experts.each.down": ("mlp.experts.{e}.down_proj",),
}
_DEEPSEEK = LLAMA.but(
    within={
        "qkv.query": ("self_attn.q_proj",), "qkv.query_down": ("self_attn.q_a_proj",),
        "qkv.query_norm": ("self_attn.q_a_layernorm",), "qkv.query_up": ("self_attn.q_b_proj",),
        "qkv.key_value_down": ("self_attn.kv_a_proj_with_mqa",),
        "qkv.key_value_norm": ("self_attn.kv_a_layernorm",),
        "qkv.key_value_up": ("self_attn.kv_b_proj",), **_EXPERTS,
        "experts.router.bias": ("mlp.gate.e_score_correction_bias",),
        "experts.shared_up": ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        "experts.shared_down": ("mlp.shared_experts.down_proj",),
    },
    lays={
        "qkv.query": (NEIGHBOURS_QUERY,), "qkv.query_up": (NEIGHBOURS_QUERY,),
        "qkv.key_value_down": (NEIGHBOURS_KEY,),
    },
)  # fmt: skip
_GLM = LLAMA.but(within={"up": ("mlp.gate_up_proj",)}, lays={"qkv": NEIGHBOURS})
NAMINGS: dict[str, Naming] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2"), _DEEPSEEK),
    "bert": _BERT,
    # Where the table is not the head, the bias beside the transform is not the head's either.
    "bert untied": replace(
        _BERT.but(whole={"head_bias": "cls.predictions.decoder.bias"}),
        passed_over=(*_NO_WEIGHTS, r"^cls\.predictions\.bias$"),
    ),
    **dict.fromkeys(("roberta", "xlm-roberta"), _ROBERTA),
    # What is a pooler there is a layer of the head for classes here.
    "roberta of classes": _ROBERTA.but(whole={"pooler": "classifier.dense"}),
    "bloom": _BLOOM,
    "ernie4_5": LLAMA.but(lays={"qkv": NEIGHBOURS}),
    "glm": _GLM,
    "glm4": _GLM.but(
        within={
            "norm_attention_out": ("post_self_attn_layernorm",),
            "norm_feed_forward_out": ("post_mlp_layernorm",),
        }
    ),
    "gpt2": _GPT2,
    "gpt_oss": LLAMA.but(
        within={
            "sinks": ("self_attn.sinks",), "experts.router": ("mlp.router",),
            "experts.each.up.weight": ("mlp.experts.gate_up_proj",),
            "experts.each.up.bias": ("mlp.experts.gate_up_proj_bias",),
            "experts.each.down.weight": ("mlp.experts.down_proj",),
            "experts.each.down.bias": ("mlp.experts.down_proj_bias",),
        },
        lays={"experts.each.up": (BY_TURNS,), "experts.each.down.weight": (TRANSPOSED,)},
    ),
    "mixtral": LLAMA.but(
        within={
            "experts.router": ("block_sparse_moe.gate",),
            "experts.each.up": (
                "block_sparse_moe.experts.{e}.w1", "block_sparse_moe.experts.{e}.w3",
            ),
            "experts.each.down": ("block_sparse_moe.experts.{e}.w2",),
        }
    ),
    "olmo2": LLAMA.but(
        within={
            "norm_attention": ("post_attention_layernorm",),
            "norm_feed_forward": ("post_feedforward_layernorm",),
        }
    ),
    "opt": _OPT,
    "phi": LLAMA.but(
        whole={"norm": "model.final_layernorm", "head_bias": "lm_head.bias"},
        within={"out": ("self_attn.dense",), "up": ("mlp.fc1",), "down": ("mlp.fc2",)},
    ),
    "phi3": LLAMA.but(within={"qkv": ("self_attn.qkv_proj",), "up": ("mlp.gate_up_proj",)}),
    "qwen3_moe": LLAMA.but(within=_EXPERTS),
    "t5": _t5(("wi",)),
    "t5 gated": _t5(("wi_0", "wi_1")),
}  # fmt: skip
"""By `model_type`."""


def naming(kind: str, spec: ModelSpec) -> Naming:
    """The names of a family's weights; raises BadInput where narrows knows its shape alone."""
    if kind not in NAMINGS:
        known = ", ".join(each for each in NAMINGS if " " not in each)
        raise BadInput(
            f"the weights of the family {kind} cannot be read, only planned with",
            hint=f"take a model of one of: {known}",
        )
    if kind == "bert" and not spec.tied_embeddings:
        kind = "bert untied"
    if NAMINGS[kind] is _ROBERTA and spec.classes:
        kind = "roberta of classes"
    return NAMINGS["t5 gated" if kind == "t5" and spec.gated else kind]
