from __future__ import annotations

import pytest

from narrows.model.configuration import shaped
from narrows.model.describing import CLASSES, config, headed, kind_of
from narrows.model.presets import presets
from narrows.model.settings import Settings
from narrows.spec.errors import BadInput
from narrows.spec.model import GELU, Alibi, LayerNorm, SquaredReLU, SwiGLU

from .conftest import spec

PUBLISHED = {
    "bert-base": "bert", "gemma-2-9b": "gemma2", "gemma-3-270m": "gemma3_text", "gpt2": "gpt2",
    "llama-3.1-8b": "llama", "mistral-7b-v0.1": "mistral", "mixtral-8x7b": "mixtral",
    "olmo-1b": "olmo", "olmo-2-7b": "olmo2", "phi-2": "phi", "qwen2.5-7b": "qwen2",
    "qwen3-8b": "qwen3", "qwen3-30b-a3b": "qwen3_moe", "smollm2-135m": "llama",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_is_told_as_its_family_s(name: str) -> None:
    shape = presets()[name].spec
    kind = kind_of(shape)
    assert kind == PUBLISHED[name]
    told = config(shape, kind)
    assert told["architectures"] == [CLASSES[kind]]
    assert shaped(kind, Settings(told, "config.json")) == shape


def test_the_family_that_a_model_came_from_goes_first() -> None:
    shape = presets()["llama-2-7b"].spec
    assert (kind_of(shape), kind_of(shape, "mistral")) == ("llama", "mistral")
    assert kind_of(shape, "gpt2") == kind_of(shape, "t5") == "llama"


def test_models_as_they_are_trained_here_have_a_class() -> None:
    assert kind_of(spec("gpt2", dropout=0.1)) == "gpt2"
    assert kind_of(spec("gpt2", feed_forward=SquaredReLU(), tied_embeddings=False)) == "gpt2"
    assert kind_of(spec("llama", biases=True)) == "llama"


@pytest.mark.parametrize("changes", [
    {"norm": LayerNorm()}, {"feed_forward": GELU()}, {"positions": Alibi()}, {"logit_scale": 0.5},
    {"embedding_norm": True, "feed_forward": SwiGLU()},
])  # fmt: skip
def test_what_no_class_computes_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="no class of transformers") as caught:
        kind_of(spec("llama", **changes))
    assert caught.value.hint and "LlamaForCausalLM" in caught.value.causes[0]


def test_two_classes_of_one_name_are_refused() -> None:
    told = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "a"}}
    with pytest.raises(BadInput, match="config.json: id2label has one name for several") as caught:
        headed(spec("llama"), "llama", Settings(told, "config.json"))
    assert caught.value.hint
