"""GLM's and MiniMax's config.json; DeepSeek's are among those of test_configuration.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from narrows.model.presets import preset
from narrows.spec.errors import BadInput

from .configs import Config, changed, read


def sizes(layers: int, width: int, heads: int, feed_forward: int, vocabulary: int) -> Config:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": feed_forward, "vocab_size": vocabulary,
    }  # fmt: skip


# Written from the repositories' config.json: what matters, in their spelling.
REAL: dict[str, Config] = {
    "glm-4.5": {
        "model_type": "glm4_moe", **sizes(92, 5120, 96, 12288, 151552), "hidden_act": "silu",
        "attention_bias": True, "first_k_dense_replace": 3, "head_dim": 128,
        "max_position_embeddings": 131072, "moe_intermediate_size": 1536, "n_group": 1,
        "n_routed_experts": 160, "n_shared_experts": 1, "norm_topk_prob": True,
        "num_experts_per_tok": 8, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 1000000, "routed_scaling_factor": 2.5, "tie_word_embeddings": False,
        "topk_group": 1, "use_qk_norm": True,
    },
    "glm-4.5-air": {
        "model_type": "glm4_moe", **sizes(46, 4096, 96, 10944, 151552), "hidden_act": "silu",
        "attention_bias": True, "first_k_dense_replace": 1, "head_dim": 128,
        "max_position_embeddings": 131072, "moe_intermediate_size": 1408, "n_group": 1,
        "n_routed_experts": 128, "n_shared_experts": 1, "norm_topk_prob": True,
        "num_experts_per_tok": 8, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 1000000, "routed_scaling_factor": 1.0, "tie_word_embeddings": False,
        "topk_group": 1, "use_qk_norm": False,
    },
    "minimax-m2": {
        "model_type": "minimax_m2", **sizes(62, 3072, 48, 1536, 200064), "hidden_act": "silu",
        "attn_type_list": [1] * 62, "head_dim": 128, "max_position_embeddings": 196608,
        "mtp_transformer_layers": 1, "num_experts_per_tok": 8, "num_key_value_heads": 8,
        "num_local_experts": 256, "num_mtp_modules": 3, "qk_norm_type": "per_layer",
        "rms_norm_eps": 1e-06, "rope_theta": 5000000, "rotary_dim": 64,
        "scoring_func": "sigmoid", "shared_intermediate_size": 0, "tie_word_embeddings": False,
        "use_mtp": True, "use_qk_norm": True, "use_routing_bias": True,
    },
}  # fmt: skip
GLM_4_9B: Config = {
    **sizes(40, 4096, 32, 13696, 151552), "attention_bias": True, "head_dim": 128,
    "hidden_act": "silu", "max_position_embeddings": 131072, "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07, "tie_word_embeddings": False,
}  # fmt: skip
# No preset, but parameters that others counted in the weights: of glm-4-9b-chat as it is loaded,
# of GLM-4.6V-Flash's language model as llama.cpp does.
COUNTED: dict[str, tuple[Config, int]] = {
    "glm-4-9b": ({"model_type": "glm", **GLM_4_9B}, 9_399_951_360),
    "glm-4.6v-flash": ({"model_type": "glm4", **GLM_4_9B}, 9_400_279_040),
    "minimax-m2, first release": (
        {**REAL["minimax-m2"], "model_type": "minimax"}, 228_689_764_864
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_a_real_config_gives_the_preset(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, REAL[name]) == preset(name).spec


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_as_others_count_them(name: str, tmp_path: Path) -> None:
    config, parameters = COUNTED[name]
    assert read(tmp_path, config).parameters == parameters


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"attn_type_list": [0] * 7 + [1]}, "its layers have linear attention"),
        ({"model_type": "minimax", "attn_type_list": ...}, "its layers have linear attention"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax', which a ModelSpec cannot say"),
        ({"shared_intermediate_size": 1536}, "shared_intermediate_size is 1536"),
    ],
)
def test_a_minimax_that_a_spec_cannot_say_is_refused(
    changes: Config, what: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, changed(REAL["minimax-m2"], **changes))
    assert what in caught.value.what and caught.value.hint


def test_more_dense_layers_than_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="first_k_dense_replace is 93"):
        read(tmp_path, changed(REAL["glm-4.5"], first_k_dense_replace=93))
