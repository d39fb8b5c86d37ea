"""Small configs of every family whose weights are read, as transformers' classes take them."""

from __future__ import annotations

from typing import Any

VOCABULARY = 96
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 80, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
TINY = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LATENT = {
    **SIZES, "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 40,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
}  # fmt: skip


def rope(kind: str, factor: float, theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, "factor": factor, **more}}


YARN = rope("yarn", 4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=1.0)
SHARP = rope("yarn", 4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=1.0,
             mscale=1.0, mscale_all_dim=1.0)  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {**TINY, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "bert": ("Bert", {**SIZES, "type_vocab_size": 3}),
    "roberta": ("Roberta", {**SIZES, "type_vocab_size": 3, "pad_token_id": 1, "bos_token_id": 0}),
    "xlm-roberta": ("XLMRoberta", {
        **SIZES, "type_vocab_size": 3, "pad_token_id": 1, "bos_token_id": 0}),
    "opt": ("OPT", {**TINY, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
                    "ffn_dim": 80, "max_position_embeddings": 64, "word_embed_proj_dim": 48}),
    "bloom": ("Bloom", {**TINY, "hidden_size": 48, "n_layer": 3, "n_head": 6, "seq_length": 64}),
    "t5": ("T5", {**TINY, "d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_heads": 4,
                  "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}),
    "t5 v1.1": ("T5", {**TINY, "d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 2,
                       "num_heads": 4, "feed_forward_proj": "gated-gelu",
                       "tie_word_embeddings": False}),
    "llama": ("Llama", GROUPED),
    "llama stretched": ("Llama", {**GROUPED, **rope("linear", 3.0)}),
    "llama 3.1": ("Llama", {**GROUPED, **rope(
        "llama3", 8.0, 500_000.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)}),
    "llama yarn": ("Llama", {**GROUPED, **YARN}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 9}),
    "qwen2": ("Qwen2", {**SIZES, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "sliding_window": 9, "query_pre_attn_scalar": 24,
                          "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {**GROUPED, "sliding_window": 9, "query_pre_attn_scalar": 24,
                          "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "glm": ("Glm", {**GROUPED, "attention_bias": True, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}),
    "glm4": ("Glm4", {**GROUPED, "attention_bias": False, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}),
    "ernie": ("Ernie4_5", {**GROUPED, "tie_word_embeddings": True}),
    "phi": ("Phi", {**SIZES, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {**SIZES, "num_key_value_heads": 2, "sliding_window": 11}),
    "phi3 stretched pair by pair": ("Phi3", {
        **SIZES, "num_key_value_heads": 2, "sliding_window": 64, "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 64, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.25, 2.5],
            "long_factor": [1.0, 2.0, 8.0], "original_max_position_embeddings": 64,
            "attention_factor": 1.25, "partial_rotary_factor": 0.5}}),
    "olmo": ("Olmo", SIZES),
    "olmo2": ("Olmo2", {**SIZES, "num_key_value_heads": 2}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 6, "num_experts_per_tok": 2}),
    "qwen3 of experts": ("Qwen3Moe", {**GROUPED, "num_experts": 6, "num_experts_per_tok": 3,
                                      "moe_intermediate_size": 24, "norm_topk_prob": True,
                                      "mlp_only_layers": [0]}),
    "gpt-oss": ("GptOss", {**GROUPED, **YARN, "num_local_experts": 6, "num_experts_per_tok": 2,
                           "intermediate_size": 24, "sliding_window": 9,
                           "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "deepseek v2": ("DeepseekV2", {**LATENT, "topk_method": "group_limited_greedy",
                                   "norm_topk_prob": False, "routed_scaling_factor": 2.0}),
    "deepseek v2 lite": ("DeepseekV2", {**LATENT, "q_lora_rank": None, "n_group": 1,
                                        "topk_group": 1, "topk_method": "greedy"}),
    "deepseek v3": ("DeepseekV3", {**LATENT, **SHARP, "norm_topk_prob": True}),
}  # fmt: skip
KINDS = {
    "Roberta": "roberta", "XLMRoberta": "xlm-roberta", "Glm": "glm", "Glm4": "glm4",
    "Ernie4_5": "ernie4_5",
    "GPT2": "gpt2", "Bert": "bert", "OPT": "opt", "Bloom": "bloom", "T5": "t5", "Llama": "llama",
    "Mistral": "mistral", "Qwen2": "qwen2", "Qwen3": "qwen3", "Gemma2": "gemma2",
    "Gemma3": "gemma3_text", "Phi": "phi", "Phi3": "phi3", "Olmo": "olmo", "Olmo2": "olmo2",
    "Mixtral": "mixtral", "Qwen3Moe": "qwen3_moe", "GptOss": "gpt_oss",
    "DeepseekV2": "deepseek_v2", "DeepseekV3": "deepseek_v3",
}  # fmt: skip
"""The model_type of each."""


def config(name: str) -> dict[str, Any]:
    """As the config.json of a folder has it."""
    kind, settings = CONFIGS[name]
    return {"model_type": KINDS[kind], **settings}


FOR_GGUF: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt2", "llama", "mixtral", "olmo2", "phi3", "qwen2", "qwen3"), {}),
    "phi3 stretched pair by pair": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 6,
               "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "llama 3.1": rope("llama3", 8.0, 500_000.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=8192),
    "llama stretched": {},
    "llama yarn": rope("yarn", 4.0, original_max_position_embeddings=16),
    "qwen3 of experts": {"mlp_only_layers": []},
}  # fmt: skip
"""What GGUF files know, changed where they cannot tell all."""
