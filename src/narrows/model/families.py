"""The shape that a config.json means, one function a model_type."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import msgspec

from narrows.model.mixtures import deepseek, glm4_moe, minimax_m2
from narrows.model.settings import Settings
from narrows.model.shapes import (
    Shape,
    read_choice,
    read_decoder,
    read_heads,
    read_rotary,
    read_sizes,
    read_window,
)
from narrows.spec.model import (
    GELU,
    Alibi,
    ClampedSwiGLU,
    Experts,
    LayerNorm,
    Learned,
    Relative,
    RMSNorm,
    Softmax,
    Window,
)


def _gpt2(config: Settings) -> Shape:
    config.only("add_cross_attention", False, default=False)
    sizes = read_heads(
        config, width=("n_embd", "hidden_size"), heads=("n_head", "num_attention_heads")
    )
    return {
        **sizes,
        "layers": config.count("n_layer", "num_hidden_layers"),
        "feed_forward_width": config.count("n_inner", default=4 * sizes["width"]),
        "vocabulary": config.count("vocab_size"),
        "context": config.count("n_positions", "max_position_embeddings"),
        "positions": Learned(),
        "norm": LayerNorm(epsilon=config.number("layer_norm_epsilon", default=1e-5)),
        "feed_forward": config.feed_forward("activation_function", gated=False, default="gelu_new"),
        "biases": True,
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
    }


def _bert(config: Settings) -> Shape:
    config.only("is_decoder", False, default=False)
    config.only("position_embedding_type", "absolute", default="absolute")
    return {
        **read_sizes(config),
        "positions": Learned(),
        "norm": LayerNorm(epsilon=config.number("layer_norm_eps", default=1e-12)),
        "feed_forward": config.feed_forward("hidden_act", gated=False, default="gelu"),
        "biases": True,
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "final_norm": False,
        "embedding_norm": True,
        "causal": False,
        "token_types": config.count("type_vocab_size", default=2),
        "pooler": True,
        "block_norms": "stream",
    }


def _roberta(config: Settings) -> Shape:
    """BERT whose positions begin behind the row of padding."""
    shape = _bert(config)
    extra = config.count("pad_token_id", default=1, least=0) + 1
    if shape["context"] <= extra:
        what = f"max_position_embeddings is {shape['context']}, and {extra} are before the first"
        raise config.refusal(what, "use more, such as 514")
    return {**shape, "context": shape["context"] - extra, "positions": Learned(extra=extra)}


def _opt(config: Settings) -> Shape:
    sizes = read_sizes(config, feed_forward="ffn_dim")
    config.only("word_embed_proj_dim", sizes["width"], default=sizes["width"])
    config.only("enable_bias", True, default=True)
    config.only("layer_norm_elementwise_affine", True, default=True)
    before = config.flag("do_layer_norm_before", default=True)
    return {
        **sizes,
        "positions": Learned(extra=2),
        "norm": LayerNorm(),
        "feed_forward": config.feed_forward("activation_function", gated=False, default="relu"),
        "biases": True,
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "block_norms": "before" if before else "stream",
        "final_norm": before and not config.flag("_remove_final_layer_norm", default=False),
    }


def _bloom(config: Settings) -> Shape:
    sizes = read_heads(
        config, width=("hidden_size", "n_embed"), heads=("n_head", "num_attention_heads")
    )
    return {
        **sizes,
        "layers": config.count("n_layer", "num_hidden_layers"),
        "feed_forward_width": config.count("n_inner", default=4 * sizes["width"]),
        "vocabulary": config.count("vocab_size"),
        "context": config.count("seq_length", default=2048),
        "positions": Alibi(),
        "norm": LayerNorm(epsilon=config.number("layer_norm_epsilon", default=1e-5)),
        "feed_forward": GELU(),
        "biases": True,
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "embedding_norm": True,
    }


def _t5(config: Settings) -> Shape:
    layers, heads = config.count("num_layers"), config.count("num_heads")
    projection = str(config.data.get("feed_forward_proj") or "relu")
    activation = Settings({"feed_forward_proj": projection.removeprefix("gated-")}, config.source)
    tied = config.flag("tie_word_embeddings", default=True)
    scaled = config.flag("scale_decoder_outputs", default=tied)
    return {
        "layers": config.count("num_decoder_layers", default=layers),
        "encoder_layers": layers,
        "width": config.count("d_model"),
        "heads": heads,
        "kv_heads": heads,
        "head_width": config.count("d_kv"),
        "feed_forward_width": config.count("d_ff"),
        "vocabulary": config.count("vocab_size"),
        "context": config.count("n_positions", default=512),
        "positions": Relative(
            buckets=config.count("relative_attention_num_buckets", default=32),
            distance=config.count("relative_attention_max_distance", default=128),
        ),
        "norm": RMSNorm(epsilon=config.number("layer_norm_epsilon", default=1e-6)),
        "feed_forward": activation.feed_forward(
            "feed_forward_proj", gated=projection.startswith("gated-")
        ),
        "biases": False,
        "tied_embeddings": tied,
        "query_scale": 1.0,
        "logit_scale": config.count("d_model") ** -0.5 if scaled else 1.0,
    }


def _llama(config: Settings) -> Shape:
    biases = config.flag("attention_bias", default=False)
    if config.flag("mlp_bias", default=False) != biases:
        what = "attention_bias and mlp_bias differ, and a ModelSpec has biases in both or neither"
        raise config.refusal(what, "set both alike for the nearest model")
    return {**read_decoder(config), "biases": biases}


def _mistral(config: Settings) -> Shape:
    return {**read_decoder(config), "window": read_window(config, default=4096)}


def _mixtral(config: Settings) -> Shape:
    shape = read_decoder(config, epsilon=1e-5, base=1e6)
    count, chosen = read_choice(config, "num_local_experts", "num_experts")
    experts = Experts(count=count, chosen=chosen, width=shape["feed_forward_width"])
    return {**shape, "experts": experts, "window": read_window(config)}


def _qwen2(config: Settings) -> Shape:
    return {**read_decoder(config), "qkv_biases": True, "window": _qwen_window(config)}


def _qwen3(config: Settings) -> Shape:
    config.only("attention_bias", False, default=False)
    shape = read_decoder(config, head_width=128)
    return {**shape, "query_norm": "head", "window": _qwen_window(config)}


def _qwen3_moe(config: Settings) -> Shape:
    config.only("decoder_sparse_step", 1, default=1)
    dense = config.numbers("mlp_only_layers")
    first = list(range(len(dense)))
    if sorted(dense) != first:
        what = f"mlp_only_layers is {dense}, and a ModelSpec has its dense layers first"
        raise config.refusal(what, f"set mlp_only_layers to {first} for the nearest model")
    count, chosen = read_choice(config, "num_experts", "num_local_experts")
    experts = Experts(
        count=count,
        chosen=chosen,
        width=config.count("moe_intermediate_size"),
        dense_layers=len(dense),
        gate=Softmax(normalised=config.flag("norm_topk_prob", default=False)),
    )
    config.only("attention_bias", False, default=False)
    window = _qwen_window(config)
    return {**read_decoder(config), "query_norm": "head", "experts": experts, "window": window}


def _gemma2(config: Settings) -> Shape:
    config.only("attention_bias", False, default=False)
    shape = read_decoder(config, head_width=256, activation="gelu_pytorch_tanh")
    tied = config.flag("tie_word_embeddings", default=True)
    window = read_window(config, full_every=2, default=4096)
    return {
        **shape, **_gemma_scales(config, shape), "tied_embeddings": tied, "window": window,
        "score_cap": config.some("attn_logit_softcapping", default=50.0),
        "logit_cap": config.some("final_logit_softcapping", default=30.0),
    }  # fmt: skip


def _gemma_scales(config: Settings, shape: Shape) -> Shape:
    return {
        "block_norms": "both",
        "embedding_scale": math.sqrt(shape["width"]),
        "query_scale": config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
    }


def _gemma3(config: Settings) -> Shape:
    # Configs of the models with vision leave out what transformers takes for granted.
    granted = {
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
        "max_position_embeddings": 131072, "rope_local_base_freq": 10_000.0,
    }  # fmt: skip
    given = {key: value for key, value in config.data.items() if value is not None}
    config = Settings({**granted, **given}, config.source)
    config.only("attention_bias", False, default=False)
    every = config.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    shape = read_decoder(config, head_width=256, activation="gelu_pytorch_tanh", base=1e6)
    local = config.number("rope_local_base_freq")
    if (parameters := config.table("rope_parameters")) and (
        within := parameters.table("sliding_attention")
    ):
        local = within.number("rope_theta", default=local)
    return {
        **shape,
        **_gemma_scales(config, shape),
        "positions": msgspec.structs.replace(shape["positions"], window_base=local),
        "score_cap": config.some("attn_logit_softcapping"),
        "logit_cap": config.some("final_logit_softcapping"),
        "query_norm": "head",
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "window": read_window(config, full_every=every, default=4096),
    }


def _phi(config: Settings) -> Shape:
    config.only("qk_layernorm", False, default=False)
    return {
        **read_rotary(config, share=0.5),
        "norm": LayerNorm(epsilon=config.number("layer_norm_eps", default=1e-5)),
        "feed_forward": config.feed_forward("hidden_act", gated=False, default="gelu_new"),
        "biases": True,
        "head_bias": True,
        "block_norms": "shared",
    }


def _phi3(config: Settings) -> Shape:
    return {**read_decoder(config, epsilon=1e-5), "window": read_window(config)}


def _olmo(config: Settings) -> Shape:
    config.only("attention_bias", False, default=False)
    return {**read_decoder(config), "norm": LayerNorm(scale=False)}


def _olmo2(config: Settings) -> Shape:
    config.only("attention_bias", False, default=False)
    return {**read_decoder(config, epsilon=1e-5), "query_norm": "whole", "block_norms": "behind"}


def _gpt_oss(config: Settings) -> Shape:
    config.only("attention_bias", True, default=True)
    shape = read_decoder(config, head_width=64, epsilon=1e-5, base=150_000.0)
    count, chosen = read_choice(config, "num_local_experts", "num_experts")
    experts = Experts(
        count=count,
        chosen=chosen,
        width=shape["feed_forward_width"],
        router_biases=True,
        biases=True,
    )
    window = read_window(config, full_every=2, default=128)
    clamped = ClampedSwiGLU(limit=config.number("swiglu_limit", default=7.0))
    return {
        **shape, "biases": True, "sinks": True, "experts": experts, "window": window,
        "feed_forward": clamped,
    }  # fmt: skip


def _ernie(config: Settings) -> Shape:
    config.only("use_bias", False, default=False)
    shape = read_decoder(config, head_width=128, epsilon=1e-5, base=500_000.0)
    return {**shape, "tied_embeddings": config.flag("tie_word_embeddings", default=True)}


def _glm(config: Settings, *, norms: str) -> Shape:
    """GLM-4; from 0414 on with norms behind attention and feed-forward, too."""
    shape = read_decoder(config, head_width=128, epsilon=1.5625e-7, share=0.5)
    qkv_biases = config.flag("attention_bias", default=True)
    return {**shape, "qkv_biases": qkv_biases, "block_norms": norms}


def _qwen_window(config: Settings) -> Window | None:
    """Only where asked for, and then in the layers from `max_window_layers` on."""
    if not config.flag("use_sliding_window", default=False):
        return None
    layers = config.count("num_hidden_layers")
    first = config.count("max_window_layers", default=28, least=0)
    if config.data.get("layer_types") is None and first >= layers:
        return None
    if config.data.get("layer_types") is None and first > 0:
        what = f"max_window_layers is {first}, and a ModelSpec has windows from the first layer on"
        raise config.refusal(what, "set use_sliding_window to false for the nearest model")
    return read_window(config, default=4096)


FAMILIES: dict[str, Callable[[Settings], Shape]] = {
    "bert": _bert,
    "bloom": _bloom,
    "deepseek_v2": partial(deepseek, balanced=False),
    "deepseek_v3": partial(deepseek, balanced=True),
    "ernie4_5": _ernie,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "glm": partial(_glm, norms="before"),
    "glm4": partial(_glm, norms="both"),
    "glm4_moe": glm4_moe,
    "gpt2": _gpt2,
    "gpt_oss": _gpt_oss,
    "kimi_k2": partial(deepseek, balanced=True),
    "llama": _llama,
    "minimax": minimax_m2,
    "minimax_m2": minimax_m2,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "opt": _opt,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "t5": _t5,
}
