"""What a config.json means whose experts are many and small: of DeepSeek, GLM and MiniMax."""

from __future__ import annotations

from narrows.model.settings import Settings
from narrows.model.shapes import Shape, read_choice, read_decoder, yarn_growth
from narrows.spec.model import Experts, Latent, Sigmoid, Softmax


def deepseek(config: Settings, *, balanced: bool) -> Shape:
    """Latent attention and experts; `balanced`: by a bias for every expert, as from V3 on."""
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
    normalised = config.flag("norm_topk_prob", default=balanced)
    gate = Sigmoid(normalised=normalised) if balanced else Softmax(normalised=normalised)
    groups = config.count("n_group", default=8 if balanced else 1)
    experts = Experts(
        count=count,
        chosen=chosen,
        width=config.count("moe_intermediate_size"),
        shared=config.count("n_shared_experts", default=0, least=0),
        dense_layers=_dense(config),
        router_biases=balanced,
        gate=gate,
        scale=config.number("routed_scaling_factor", default=2.5 if balanced else 1.0),
        groups=groups,
        groups_open=config.count("topk_group", default=4 if balanced else 1) if groups > 1 else 1,
    )
    # transformers writes the turned width as head_dim; a head is as wide as what is not turned.
    plain = {**config.data, "head_dim": config.count("qk_nope_head_dim")}
    shape = read_decoder(Settings(plain, config.source))
    scale = _yarn_scale(config, plain["head_dim"] + latent.rope_width)
    return {**shape, "latent": latent, "experts": experts, "query_scale": scale}


def glm4_moe(config: Settings) -> Shape:
    """GLM-4.5 to 4.7 (arXiv:2508.06471)."""
    count, chosen = read_choice(config, "n_routed_experts", "num_experts")
    groups = config.count("n_group", default=1)
    experts = Experts(
        count=count,
        chosen=chosen,
        width=config.count("moe_intermediate_size", default=1408),
        shared=config.count("n_shared_experts", default=1, least=0),
        dense_layers=_dense(config, default=1),
        router_biases=True,
        gate=Sigmoid(normalised=config.flag("norm_topk_prob", default=True)),
        scale=config.number("routed_scaling_factor", default=1.0),
        groups=groups,
        groups_open=config.count("topk_group", default=1) if groups > 1 else 1,
    )
    return {
        **read_decoder(config, epsilon=1e-5, share=0.5),
        "qkv_biases": config.flag("attention_bias", default=False),
        "query_norm": "head" if config.flag("use_qk_norm", default=False) else None,
        "experts": experts,
    }


def minimax_m2(config: Settings) -> Shape:
    """M2 and later; of the linear attention of Text-01 and M1 a ModelSpec cannot speak."""
    kinds = config.numbers("attn_type_list")
    linear = config.data.get("model_type") == "minimax" and not kinds
    if linear or any(kind != 1 for kind in kinds):
        raise config.refusal(
            "its layers have linear attention, which a ModelSpec cannot say",
            "take a model whose attn_type_list is of ones alone, such as MiniMax-M2",
        )
    config.only("scoring_func", "sigmoid", default="sigmoid")
    config.only("shared_intermediate_size", 0, default=0)
    shape = read_decoder(config, head_width=128, base=5e6, share=_turned(config))
    count, chosen = read_choice(config, "num_local_experts", "num_experts")
    experts = Experts(
        count=count,
        chosen=chosen,
        width=shape["feed_forward_width"],
        router_biases=config.flag("use_routing_bias", default=True),
        gate=Sigmoid(),
    )
    whole = config.flag("use_qk_norm", default=True)
    return {**shape, "query_norm": "whole" if whole else None, "experts": experts}


def _turned(config: Settings) -> float:
    """The share of a head that is turned, where it is given by its width."""
    width = config.count("head_dim", default=128)
    return config.count("rotary_dim", default=width) / width


def _yarn_scale(config: Settings, width: int) -> float | None:
    """DeepSeek sharpens the scores of stretched contexts (arXiv:2412.19437, its own code)."""
    table = config.table("rope_parameters") or config.table("rope_scaling")
    weight = None if table is None else table.some("mscale_all_dim")
    if table is None or weight is None:
        return None
    return float(width**-0.5 * yarn_growth(table.number("factor"), weight) ** 2)


def _dense(config: Settings, default: int | None = None) -> int:
    """How many of the first layers have no experts."""
    layers = config.count("num_hidden_layers")
    dense = config.count("first_k_dense_replace", default=default, least=0)
    if dense > layers:
        what = f"first_k_dense_replace is {dense}, and num_hidden_layers is {layers}"
        raise config.refusal(what, f"use first_k_dense_replace <= {layers}")
    return dense
