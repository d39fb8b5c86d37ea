"""The config.json that a ModelSpec is: `families` the other way round.

    config(spec, kind) → the keys of transformers' class of the family

Keys are written as plainly as they come, then read back by the family's own reader. Only where that
gives the very same spec does the class compute the same; so no rule has to be told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec

from narrows.model.configuration import shaped
from narrows.model.settings import Settings
from narrows.model.shapes import Shape
from narrows.spec.errors import BadInput
from narrows.spec.model import (
    GELU,
    Banded,
    GeGLU,
    LayerNorm,
    Learned,
    Linear,
    ModelSpec,
    Paired,
    ReLU,
    Rotary,
    Scaling,
    Softmax,
    SquaredReLU,
    SwiGLU,
    Yarn,
)

CLASSES = {
    "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "olmo": "OlmoForCausalLM", "olmo2": "Olmo2ForCausalLM",
    "phi": "PhiForCausalLM", "phi3": "Phi3ForCausalLM", "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "bert": "BertModel", "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel", "glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
}  # fmt: skip
"""transformers' class of a family; of several that compute the same the first is taken."""
_JUDGES = {
    kind: f"{name.removesuffix('ForCausalLM').removesuffix('LMHeadModel').removesuffix('Model')}"
    "ForSequenceClassification"
    for kind, name in {**CLASSES, "gemma3_text": "Gemma3TextForCausalLM"}.items()
}
"""That of a family with a head for classes, where it computes what ours does."""
_FILLERS = {
    "bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
}  # fmt: skip
"""That of a family with a head for masked tokens behind a transform of its own."""
_TRANSFORMS = ("cls.predictions.transform.dense.weight", "lm_head.dense.weight")
_NUMBER = "regression"
_ACTIVATIONS = {
    SwiGLU(): "silu", GeGLU(): "gelu_pytorch_tanh", GELU(exact=True): "gelu", GELU(): "gelu_new",
    ReLU(): "relu", SquaredReLU(): "relu2",
}  # fmt: skip
_Keys = dict[str, Any]


def kind_of(spec: ModelSpec, first: str | None = None) -> str:
    """The family, `first` before others, whose class computes what the spec says; raises BadInput
    where transformers has none.
    """
    for kind in dict.fromkeys((first, *CLASSES)):
        if kind in CLASSES and means(spec, kind, Settings(config(spec, kind), "config.json")):
            return kind
    hint = "train with the habits of model.kind: no other norm, feed-forward or positions"
    if not spec.causal:
        hint = "of what reads both ways BERT and its like have one: start from a BERT (model.start)"
    raise BadInput(
        "no class of transformers that narrows knows computes this model",
        causes=[f"known: {', '.join(CLASSES.values())}"], hint=hint,
    )  # fmt: skip


def means(
    spec: ModelSpec, kind: str, settings: Settings, *,
    then: Callable[[Shape], Shape] = lambda shape: shape,
) -> bool:  # fmt: skip
    """Whether settings of the family say just what the spec does, dropout aside, a pooler and a
    head for masked tokens, which files have or have not, and a head for classes.
    """
    window = spec.window if spec.window and spec.window.size < spec.context else None
    judges = spec.classes > 0
    spec = msgspec.structs.replace(spec, window=window, classes=0, pooling="last")
    try:
        found = shaped(kind, settings, then=then)
    except BadInput:
        return False
    beside: _Keys = {each: getattr(spec, each) for each in ("dropout", "pooler", "head_transform")}
    if isinstance(spec.positions, Rotary) and isinstance(spec.positions.scaling, Paired):
        # Files say the longest context, whichever is read.
        beside["context"] = spec.context
    if kind in _FILLERS or judges:
        beside["head_bias"] = spec.head_bias
    return msgspec.structs.replace(found, **beside) == spec


def config(spec: ModelSpec, kind: str) -> _Keys:
    """The keys of the family's config.json, as near to the spec as they come."""
    return {"architectures": [CLASSES[kind]], "model_type": kind, **_keys(spec, kind)}


def head(spec: ModelSpec, kind: str, labels: tuple[str, ...]) -> _Keys:
    """What config.json says of a head for `labels`, none of them for a number; empty without one.

    Raises BadInput where no class of the family computes what the head does.
    """
    if not spec.classes:
        return {"architectures": [_FILLERS[kind]]} if spec.head_transform else {}
    if kind not in _JUDGES or spec.causal != (kind not in _FILLERS):
        raise BadInput(
            f"transformers' classes of {kind} models read texts otherwise than a head of ours does",
            hint="start from a BERT model, such as MiniLM, or from a causal one that stays causal",
        )
    if spec.causal and spec.pooling != "last":
        raise BadInput(
            f"the head reads the {spec.pooling} of a text's states, and {_JUDGES[kind]} reads the "
            "last one",
            hint="train with --set model.pooling=last",
        )
    if not spec.causal and (spec.pooling != "first" or not spec.pooler):
        raise BadInput(
            f"the head reads the {spec.pooling} of a text's states, and {_JUDGES[kind]} reads the "
            "first one, through a pooler",
            hint="train with --set model.pooling=first, from a model that has a pooler",
        )
    names = labels or ("LABEL_0",)
    return {
        "architectures": [_JUDGES[kind]],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification" if labels else _NUMBER,
    }


def headed(
    spec: ModelSpec, kind: str, settings: Settings
) -> tuple[ModelSpec, tuple[str, ...] | None]:
    """The spec with the head that config.json tells of, and its labels; None where it has none.

    Raises BadInput where it tells too little.
    """
    if settings.data.get("architectures") != [_JUDGES.get(kind)]:
        return spec, None
    told = settings.data.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(told, dict) or sorted(told) != sorted(map(str, range(len(told)))) or not told:
        raise BadInput(
            f"{settings.source}: id2label does not number the classes from 0",
            hint="take the model's own config.json",
        )
    labels = tuple(str(told[str(number)]) for number in range(len(told)))
    if len(set(labels)) < len(labels):
        raise BadInput(
            f"{settings.source}: id2label has one name for several classes: {', '.join(labels)}",
            hint="give each class a name of its own there",
        )
    number = len(labels) == 1 or settings.data.get("problem_type") == _NUMBER
    pooling = "last" if spec.causal else "first"
    spec = msgspec.structs.replace(spec, classes=len(labels), pooling=pooling)
    return spec, () if number else labels


def saying(spec: ModelSpec, kind: str, names: Collection[str]) -> ModelSpec:
    """The spec with the head for masked tokens that files with tensors of these names have."""
    if kind not in _FILLERS or not any(each in names for each in _TRANSFORMS):
        return spec
    return msgspec.structs.replace(spec, head_transform=True, head_bias=True)


def _keys(spec: ModelSpec, kind: str) -> _Keys:
    if kind == "gpt2":
        return _gpt2(spec)
    keys = {**_sizes(spec), **_rotations(spec), **_window(spec, kind)}
    norm = "layer_norm_eps" if isinstance(spec.norm, LayerNorm) else "rms_norm_eps"
    keys |= {norm: spec.norm.epsilon, "hidden_act": _ACTIVATIONS.get(spec.feed_forward)}
    match kind:
        case "llama":
            keys |= dict.fromkeys(("attention_bias", "mlp_bias"), spec.biases)
        case "bert" | "roberta" | "xlm-roberta":
            keys |= {"type_vocab_size": spec.token_types, "position_embedding_type": "absolute"}
            if isinstance(spec.positions, Learned) and (extra := spec.positions.extra):
                keys |= {"max_position_embeddings": spec.context + extra,
                         "pad_token_id": extra - 1}  # fmt: skip
        case "phi" | "phi3" if isinstance(spec.positions, Rotary):
            keys |= {"partial_rotary_factor": spec.positions.share}
        case "glm" | "glm4" if isinstance(spec.positions, Rotary):
            keys |= {"partial_rotary_factor": spec.positions.share,
                     "attention_bias": spec.qkv_biases}  # fmt: skip
        case "gemma2" | "gemma3_text":
            keys |= _gemma(spec, keys.pop("hidden_act"))
        case "mixtral" | "qwen3_moe":
            keys |= _experts(spec, kind)
    return keys


def _sizes(spec: ModelSpec) -> _Keys:
    return {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_width,
        "intermediate_size": spec.feed_forward_width,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": spec.tied_embeddings,
    }


def _gpt2(spec: ModelSpec) -> _Keys:
    return {
        "n_embd": spec.width,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_inner": spec.feed_forward_width,
        "n_positions": spec.context,
        "vocab_size": spec.vocabulary,
        "activation_function": _ACTIVATIONS.get(spec.feed_forward),
        "layer_norm_epsilon": spec.norm.epsilon,
        "tie_word_embeddings": spec.tied_embeddings,
    }


def _rotations(spec: ModelSpec) -> _Keys:
    """In the spelling that versions of transformers before 5 know, too."""
    if not isinstance(spec.positions, Rotary):
        return {}
    scaling = spec.positions.scaling
    keys: _Keys = {"rope_theta": spec.positions.base, "rope_scaling": _scaling(scaling)}
    if isinstance(scaling, Paired):
        keys |= {"max_position_embeddings": scaling.context,
                 "original_max_position_embeddings": scaling.positions}  # fmt: skip
    return keys


def _scaling(scaling: Scaling | None) -> _Keys | None:
    match scaling:
        case None:
            return None
        case Linear(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Banded(factor=factor, low=low, high=high, positions=own):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                "high_freq_factor": high, "original_max_position_embeddings": own,
            }  # fmt: skip
        case Yarn(factor=factor, low=low, high=high, positions=own):
            return {
                "rope_type": "yarn", "factor": factor, "beta_slow": low, "beta_fast": high,
                "original_max_position_embeddings": own, "truncate": scaling.whole_pairs,
                "attention_factor": scaling.growth,
            }  # fmt: skip
        case Paired(short=short, long=long, positions=own):
            return {
                "rope_type": "longrope", "type": "longrope", "short_factor": list(short),
                "long_factor": list(long), "original_max_position_embeddings": own,
                "attention_factor": scaling.growth,
            }  # fmt: skip


def _window(spec: ModelSpec, kind: str) -> _Keys:
    size = spec.window.size if spec.window else None
    if kind not in ("mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"):
        return {}
    asked = {"use_sliding_window": size is not None} if kind.startswith("qwen") else {}
    return {"sliding_window": size, **asked, **({"layer_types": _kinds(spec)} if asked else {})}


def _kinds(spec: ModelSpec) -> list[str]:
    """Of attention, layer by layer."""
    sizes = [spec.window_of(layer) for layer in range(spec.layers)]
    return ["full_attention" if size is None else "sliding_attention" for size in sizes]


def _gemma(spec: ModelSpec, activation: str | None) -> _Keys:
    scale = spec.query_scale or spec.head_width**-0.5
    scalar = float(f"{scale**-2:.12g}")
    keys: _Keys = {
        "hidden_activation": activation,
        "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
        "attn_logit_softcapping": spec.score_cap,
        "final_logit_softcapping": spec.logit_cap,
        "sliding_window": spec.window.size if spec.window else spec.context,
        "layer_types": _kinds(spec),
    }
    if isinstance(spec.positions, Rotary) and spec.positions.window_base is not None:
        keys["rope_local_base_freq"] = spec.positions.window_base
    return keys


def _experts(spec: ModelSpec, kind: str) -> _Keys:
    experts = spec.experts
    if experts is None:
        return {}
    count = {"num_experts_per_tok": experts.chosen}
    if kind == "mixtral":
        return {"num_local_experts": experts.count, **count}
    return {
        **count,
        "num_experts": experts.count,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": isinstance(experts.gate, Softmax) and experts.gate.normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(experts.dense_layers)),
    }
