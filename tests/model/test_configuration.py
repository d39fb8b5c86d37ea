from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from narrows.model.configuration import read_config
from narrows.model.families import FAMILIES
from narrows.model.presets import preset
from narrows.spec.errors import BadInput
from narrows.spec.model import GeGLU, Learned, SwiGLU, Window

from .configs import Config, changed, read


def sizes(layers: int, width: int, heads: int, feed_forward: int, vocabulary: int) -> Config:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": feed_forward, "vocab_size": vocabulary,
    }  # fmt: skip


def alternating(layers: int, every: int) -> list[str]:
    return [
        "sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)
    ]


def yarn(factor: float, beta_fast: float, mscale: float) -> Config:
    return {
        "beta_fast": beta_fast, "beta_slow": 1, "factor": factor, "mscale": mscale,
        "mscale_all_dim": mscale, "original_max_position_embeddings": 4096, "type": "yarn",
    }  # fmt: skip


# Written from the repositories' config.json: what matters, in their spelling.
REAL: dict[str, Config] = {
    "gpt2-medium": {
        "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24,
        "n_positions": 1024, "vocab_size": 50257,
    },
    "bert-base": {
        "model_type": "bert", **sizes(12, 768, 12, 3072, 30522), "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2,
        "position_embedding_type": "absolute",
    },
    "opt-1.3b": {
        "model_type": "opt", "activation_function": "relu", "do_layer_norm_before": True,
        "ffn_dim": 8192, "hidden_size": 2048, "max_position_embeddings": 2048,
        "num_attention_heads": 32, "num_hidden_layers": 24, "vocab_size": 50272,
        "word_embed_proj_dim": 2048, "_remove_final_layer_norm": False,
    },
    "bloom-560m": {
        "model_type": "bloom", "layer_norm_epsilon": 1e-05, "n_embed": 1024, "n_inner": None,
        "n_layer": 24, "num_attention_heads": 16, "seq_length": 2048, "vocab_size": 250880,
    },
    "llama-7b": {
        "model_type": "llama", **sizes(32, 4096, 32, 11008, 32000), "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
    },
    "llama-3.1-70b": {
        "model_type": "llama", **sizes(80, 8192, 64, 28672, 128256), "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "llama3"}, "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "model_type": "llama", **sizes(16, 2048, 32, 8192, 128256), "head_dim": 64,
        "hidden_act": "silu", "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05, "tie_word_embeddings": True,
        "rope_parameters": {"factor": 32.0, "rope_type": "llama3", "rope_theta": 500000.0},
    },
    "mistral-7b-v0.1": {
        "model_type": "mistral", **sizes(32, 4096, 32, 14336, 32000), "hidden_act": "silu",
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    },
    "mistral-nemo-12b": {
        "model_type": "mistral", **sizes(40, 5120, 32, 14336, 131072), "hidden_act": "silu",
        "head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", **sizes(32, 4096, 32, 14336, 32000), "hidden_act": "silu",
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "num_experts_per_tok": 2, "num_local_experts": 8,
        "sliding_window": None, "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", **sizes(24, 896, 14, 4864, 151936), "hidden_act": "silu",
        "num_key_value_heads": 2, "max_position_embeddings": 32768, "max_window_layers": 24,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": True, "use_sliding_window": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3", **sizes(36, 4096, 32, 12288, 151936), "hidden_act": "silu",
        "attention_bias": False, "head_dim": 128, "num_key_value_heads": 8,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", **sizes(48, 2048, 32, 6144, 151936), "hidden_act": "silu",
        "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "norm_topk_prob": True,
        "num_key_value_heads": 4, "max_position_embeddings": 40960, "mlp_only_layers": [],
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", **sizes(26, 2304, 8, 9216, 256000), "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": 4, "max_position_embeddings": 8192, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 256,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", **sizes(26, 1152, 4, 6912, 262144), "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 1,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
        "rope_local_base_freq": 10000, "sliding_window": 512, "sliding_window_pattern": 6,
    },
    "gemma-3-4b": {
        "model_type": "gemma3", "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 1152},
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    },
    "gemma-3-27b": {
        "model_type": "gemma3",
        "text_config": {
            **sizes(62, 5376, 32, 21504, 262208), "head_dim": 128, "num_key_value_heads": 16,
            "layer_types": alternating(62, 6), "sliding_window": 1024, "query_pre_attn_scalar": 168,
            "rope_parameters": {
                "full_attention": {"rope_theta": 1000000.0, "factor": 8.0, "rope_type": "linear"},
                "sliding_attention": {"rope_theta": 10000.0},
            },
        },
    },
    "phi-2": {
        "model_type": "phi", **sizes(32, 2560, 32, 10240, 51200), "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_key_value_heads": None,
        "partial_rotary_factor": 0.4, "qk_layernorm": False, "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "phi-3-mini": {
        "model_type": "phi3", **sizes(32, 3072, 32, 8192, 32064), "hidden_act": "silu",
        "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False,
    },
    "olmo-1b": {
        "model_type": "olmo", **sizes(16, 2048, 16, 8192, 50304), "hidden_act": "silu",
        "clip_qkv": None, "num_key_value_heads": 16, "max_position_embeddings": 2048,
        "rope_theta": 10000.0, "tie_word_embeddings": True,
    },
    "olmo-2-32b": {
        "model_type": "olmo2", **sizes(64, 5120, 40, 27648, 100352), "hidden_act": "silu",
        "attention_bias": False, "num_key_value_heads": 8, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-06, "rope_theta": 500000, "tie_word_embeddings": False,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", **sizes(24, 2880, 64, 2880, 201088), "hidden_act": "silu",
        "attention_bias": True, "experts_per_token": 4, "head_dim": 64, "num_key_value_heads": 8,
        "layer_types": alternating(24, 2), "max_position_embeddings": 131072,
        "num_experts_per_tok": 4, "num_local_experts": 32, "rms_norm_eps": 1e-05,
        "rope_theta": 150000, "sliding_window": 128, "tie_word_embeddings": False,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
            "original_max_position_embeddings": 4096, "truncate": False,
        },
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2", **sizes(27, 2048, 16, 10944, 102400), "hidden_act": "silu",
        "first_k_dense_replace": 1, "kv_lora_rank": 512, "max_position_embeddings": 163840,
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "num_key_value_heads": 16,
        "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06, "rope_theta": 10000, "v_head_dim": 128,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "rope_scaling": yarn(40, 32, 0.707),
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", **sizes(61, 7168, 128, 18432, 129280), "hidden_act": "silu",
        "first_k_dense_replace": 3, "kv_lora_rank": 512, "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000, "v_head_dim": 128,
        "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "rope_scaling": yarn(40, 32, 1.0),
    },
    "t5-base": {
        "model_type": "t5", "d_ff": 3072, "d_kv": 64, "d_model": 768, "layer_norm_epsilon": 1e-06,
        "n_positions": 512, "num_heads": 12, "num_layers": 12, "vocab_size": 32128,
        "relative_attention_num_buckets": 32,
    },
}  # fmt: skip
REAL["kimi-k2"] = {
    **REAL["deepseek-v3"], "model_type": "kimi_k2", "num_attention_heads": 64,
    "num_key_value_heads": 64, "n_routed_experts": 384, "first_k_dense_replace": 1,
    "vocab_size": 163840, "max_position_embeddings": 131072, "rope_theta": 50000,
    "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827, "rope_scaling": yarn(32, 1, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_a_real_config_gives_the_preset(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, REAL[name]) == preset(name).spec


def test_every_family_is_tried() -> None:
    tried = {config["model_type"] for config in REAL.values()} - {"gemma3"}
    planned = {"glm", "glm4", "glm4_moe", "minimax", "minimax_m2"}
    assert tried | planned | {"ernie4_5", "roberta", "xlm-roberta"} == FAMILIES.keys()


@pytest.mark.parametrize(
    ("kind", "vocabulary", "parameters"),
    [("roberta", 50_265, 124_645_632), ("xlm-roberta", 250_002, 278_043_648)],
)
def test_roberta_has_a_row_of_positions_for_padding(
    kind: str, vocabulary: int, parameters: int, tmp_path: Path
) -> None:
    config = {
        "model_type": kind, "num_hidden_layers": 12, "hidden_size": 768,
        "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": vocabulary,
        "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-05,
        "pad_token_id": 1,
    }  # fmt: skip
    found = read(tmp_path, config)
    assert (found.context, found.positions) == (512, Learned(extra=2))
    assert found.parameters == parameters
    with pytest.raises(BadInput, match="2 are before the first"):
        read(tmp_path, {**config, "max_position_embeddings": 2})


def test_the_file_may_be_named_itself(tmp_path: Path) -> None:
    read(tmp_path, REAL["llama-7b"])
    assert read_config(str(tmp_path / "config.json")) == preset("llama-7b").spec


def test_the_context_may_be_another(tmp_path: Path) -> None:
    long = read(tmp_path, REAL["llama-3.1-70b"], 262_144)
    assert long == msgspec.structs.replace(preset("llama-3.1-70b").spec, context=262_144)
    assert read(tmp_path, REAL["gpt2-medium"], 512).parameters == 354_823_168 - 512 * 1024
    with pytest.raises(BadInput, match="embeddings of 1024 positions") as caught:
        read(tmp_path, REAL["gpt2-medium"], 2048)
    assert caught.value.hint == "use context <= 1024"
    with pytest.raises(BadInput, match="model.context is 0"):
        read(tmp_path, REAL["llama-7b"], 0)


@pytest.mark.parametrize(
    ("name", "changes", "window"),
    [
        ("mistral-7b-v0.1", {"sliding_window": ...}, Window(size=4096)),
        ("mistral-7b-v0.1", {"max_position_embeddings": 4096}, None),
        ("qwen2.5-0.5b", {"use_sliding_window": True}, None),
        ("qwen2.5-0.5b", {"use_sliding_window": True, "max_window_layers": 0,
                          "sliding_window": 512}, Window(size=512)),
        ("qwen3-8b", {"use_sliding_window": True, "sliding_window": 512,
                      "layer_types": alternating(36, 4)}, Window(size=512, full_every=4)),
        ("mistral-nemo-12b", {"layer_types": ["full_attention"] * 40}, None),
        ("gemma-3-1b", {"sliding_window_pattern": 2}, Window(size=512, full_every=2)),
    ],
)  # fmt: skip
def test_windows(name: str, changes: Config, window: Window | None, tmp_path: Path) -> None:
    assert read(tmp_path, changed(REAL[name], **changes)).window == window


def test_variants_of_a_family(tmp_path: Path) -> None:
    biased = read(tmp_path, changed(REAL["llama-7b"], attention_bias=True, mlp_bias=True))
    assert biased.biases
    assert read(tmp_path, changed(REAL["llama-7b"], hidden_act="gelu")).feed_forward == GeGLU()
    v1_1 = read(tmp_path, changed(REAL["t5-base"], feed_forward_proj="gated-gelu", d_ff=2048,
                                  tie_word_embeddings=False))  # fmt: skip
    assert v1_1.feed_forward == GeGLU() and v1_1.parameters == 247_577_856
    gated = read(tmp_path, changed(REAL["t5-base"], feed_forward_proj="gated-silu"))
    assert gated.feed_forward == SwiGLU()
    after = read(tmp_path, changed(REAL["opt-1.3b"], do_layer_norm_before=False))
    assert not after.final_norm and after.block_norms == "stream"
    dense = read(tmp_path, changed(REAL["qwen3-30b-a3b"], mlp_only_layers=[1, 0]))
    assert dense.experts is not None and dense.experts.dense_layers == 2


@pytest.mark.parametrize(
    ("name", "changes", "what", "hint"),
    [
        ("llama-7b", {"model_type": "lama"}, 'model_type "lama" is not known', "mean llama?"),
        ("llama-7b", {"model_type": "rwkv"}, 'model_type "rwkv" is not known', "known: bert, "),
        ("llama-7b", {"model_type": ...}, "model_type is missing", 'add "model_type"'),
        ("llama-7b", {"hidden_size": ...}, "hidden_size is missing", 'add "hidden_size"'),
        ("llama-7b", {"vocab_size": None}, "vocab_size is missing", 'add "vocab_size"'),
        ("llama-7b", {"hidden_size": "4096"}, "hidden_size should be a whole number", "1024"),
        ("llama-7b", {"hidden_size": True}, "hidden_size should be a whole number", "1024"),
        ("llama-7b", {"num_hidden_layers": 0}, "num_hidden_layers is 0", "at least 1"),
        ("llama-7b", {"rope_theta": 0}, "rope_theta should be a number above 0", ": 10000"),
        ("llama-7b", {"rms_norm_eps": 0}, "rms_norm_eps should be a number above 0", "1e-5"),
        ("llama-7b", {"tie_word_embeddings": 1}, "tie_word_embeddings should be true", "false"),
        ("llama-7b", {"num_attention_heads": 30}, "num_attention_heads = 30", "head_dim"),
        ("llama-7b", {"num_key_value_heads": 5}, "num_key_value_heads is 5", "correct one"),
        ("llama-7b", {"head_dim": 127}, "head_width is 127", "even"),
        ("llama-7b", {"hidden_act": "sily"}, "hidden_act cannot be 'sily'", "did you mean silu?"),
        ("llama-7b", {"hidden_act": 3}, "hidden_act cannot be 3", "use one of: silu"),
        ("llama-7b", {"attention_bias": True}, "attention_bias and mlp_bias differ", "alike"),
        ("llama-7b", {"rope_theta": 2.0, "rope_parameters": {"rope_theta": 3.0}},
         "rope_theta is 2.0, and within rope_parameters it is 3.0", "delete one"),
        ("llama-7b", {"rope_parameters": 3}, "rope_parameters should be a table", "{...}"),
        ("gpt2-medium", {"hidden_size": 768}, "n_embd is 1024 and hidden_size is 768", "delete"),
        ("gpt2-medium", {"add_cross_attention": True}, "add_cross_attention is true", "to false"),
        ("bert-base", {"position_embedding_type": "relative_key"}, "position_embedding_type is",
         "'absolute'"),
        ("opt-1.3b", {"word_embed_proj_dim": 512}, "word_embed_proj_dim is 512", "to 2048"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9", "<= 8"),
        ("mixtral-8x7b", {"num_local_experts": ...}, "num_local_experts is missing", "add"),
        ("qwen3-8b", {"attention_bias": True}, "attention_bias is true", "to false"),
        ("qwen2.5-0.5b", {"use_sliding_window": True, "max_window_layers": 12},
         "max_window_layers is 12", "use_sliding_window to false"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, "mlp_only_layers is [3]", "to [0]"),
        ("qwen3-30b-a3b", {"mlp_only_layers": "x"}, "mlp_only_layers should be a list", "[]"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2", "to 1"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types does not list 24", "as"),
        ("gpt-oss-20b", {"layer_types": [["x"]] * 24}, "layer_types has ['x']", "alone"),
        ("gpt-oss-20b", {"layer_types": alternating(24, 2)[::-1]}, "layer_types is irregular",
         "every n-th"),
        ("gpt-oss-20b", {"sliding_window": None}, "sliding_window is missing", "add"),
        ("deepseek-v3", {"first_k_dense_replace": 62}, "first_k_dense_replace is 62", "<= 61"),
        ("deepseek-v3", {"num_key_value_heads": 8}, "num_key_value_heads is 8", "to 128"),
        ("gemma-3-4b", {"text_config": ...}, "text_config is missing", "whole model"),
        ("gemma-3-4b", {"text_config": {}}, "text_config: hidden_size is missing", "add"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_a_fix(
    name: str, changes: Config, what: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, changed(REAL[name], **changes))
    assert what in caught.value.what
    assert str(tmp_path) in caught.value.what
    assert hint in (caught.value.hint or "")


def test_what_is_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="config.json does not exist"):
        read_config(tmp_path)
    with pytest.raises(BadInput, match="should be a table"):
        read(tmp_path, [1])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        read_config(tmp_path)
