"""The shape that a config.json means, one function a model_type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
    Experts,
    Latent,
    LayerNorm,
    Learned,
    Relative,
    RMSNorm,
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
    }


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
        "positions": Relative(buckets=config.count("relative_attention_num_buckets", default=32)),
        "norm": RMSNorm(epsilon=config.number("layer_norm_epsilon", default=1e-6)),
        "feed_forward": activation.feed_forward(
            "feed_forward_proj", gated=projection.startswith("gated-")
        ),
        "biases": False,
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
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
    count, chosen = read_choice(config, "num_experts")
    experts = Experts(
        count=count,
        chosen=chosen,
        width=config.count("moe_intermediate_size"),
        dense_layers=len(dense),
    )
    config.only("attention_bias", False, default=False)
    window = _qwen_window(config)
    return {**read_decoder(config), "query_norm": "head", "experts": experts, "window": window}


def _gemma2(config: Settings) -> Shape:
    config.only("attention_bias", False, default=False)
    shape = read_decoder(config, head_width=256, activation="gelu_pytorch_tanh")
    tied = config.flag("tie_word_embeddings", default=True)
    window = read_window(config, full_every=2, default=4096)
    return {**shape, "block_norms": 4, "tied_embeddings": tied, "window": window}


def _gemma3(config: Settings) -> Shape:
    # Configs of the models with vision leave out what transformers takes for granted.
    granted = {
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
        "max_position_embeddings": 131072,
    }  # fmt: skip
    given = {key: value for key, value in config.data.items() if value is not None}
    config = Settings({**granted, **given}, config.source)
    config.only("attention_bias", False, default=False)
    every = config.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    shape = read_decoder(config, head_width=256, activation="gelu_pytorch_tanh", base=1e6)
    return {
        **shape,
        "block_norms": 4,
        "query_norm": "head",
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "window": read_window(config, full_every=every, default=4096),
    }


def _phi(config: Settings) -> Shape:
    config.only("qk_layernorm", False, default=False)
    return {
        **read_rotary(config),
        "norm": LayerNorm(epsilon=config.number("layer_norm_eps", default=1e-5)),
        "feed_forward": config.feed_forward("hidden_act", gated=False, default="gelu_new"),
        "biases": True,
        "head_bias": True,
        "block_norms": 1,
    }


def _phi3(config: Settings) -> Shape:
    return {**read_decoder(config, epsilon=1e-5), "window": read_window(config)}


def _olmo(config: Settings) -> Shape:
    config.only("attention_bias", False, default=False)
    return {**read_decoder(config), "norm": LayerNorm(scale=False)}


def _olmo2(config: Settings) -> Shape:
    config.only("attention_bias", False, default=False)
    return {**read_decoder(config, epsilon=1e-5), "query_norm": "whole"}


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
    return {**shape, "biases": True, "sinks": True, "experts": experts, "window": window}


def _deepseek(config: Settings, *, balanced: bool) -> Shape:
    """`balanced`: by a bias for every expert, as from V3 on."""
    config.only("attention_bias", False, default=False)
    config.only("moe_layer_freq", 1, default=1)
    heads = config.count("num_attention_heads")
    config.only("num_key_value_heads", heads, default=heads)
    full = config.has("q_lora_rank") and config.data["q_lora_rank"] is None
    latent = Latent(
        kv_rank=config.count("kv_lora_rank"),
        rope_width=config.count("qk_rope_head_dim"),
        value_width=config.count("v_head_dim"),
        query_rank=None if full else config.count("q_lora_rank"),
    )
    count, chosen = read_choice(config, "n_routed_experts")
    layers, dense = (
        config.count("num_hidden_layers"),
        config.count("first_k_dense_replace", least=0),
    )
    if dense > layers:
        what = f"first_k_dense_replace is {dense}, and num_hidden_layers is {layers}"
        raise config.refusal(what, f"use first_k_dense_replace <= {layers}")
    experts = Experts(
        count=count,
        chosen=chosen,
        width=config.count("moe_intermediate_size"),
        shared=config.count("n_shared_experts", default=0, least=0),
        dense_layers=dense,
        router_biases=balanced,
    )
    # transformers writes the turned width as head_dim; a head is as wide as what is not turned.
    plain = {**config.data, "head_dim": config.count("qk_nope_head_dim")}
    shape = read_decoder(Settings(plain, config.source))
    return {**shape, "latent": latent, "experts": experts}


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
    "deepseek_v2": partial(_deepseek, balanced=False),
    "deepseek_v3": partial(_deepseek, balanced=True),
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_oss": _gpt_oss,
    "kimi_k2": partial(_deepseek, balanced=True),
    "llama": _llama,
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
    "t5": _t5,
}
