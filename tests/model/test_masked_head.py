"""BERT's own head for masked tokens: its transform is read, computes and is written as theirs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from narrows.infer.export import export
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec, SwiGLU, gpt2

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
TOKENS = (torch.arange(24).view(2, 12) * 7 + 3) % 97


def theirs(kind: str, folder: Path, *, tied: bool = True) -> torch.nn.Module:
    """A random model of that class, in the folder too; biases that are zero at first, too."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40, initializer_range=0.2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model: torch.nn.Module = getattr(transformers, f"BertFor{kind}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("cls.") and parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def ours(folder: Path) -> Transformer:
    original = opened(folder)
    return build(original, torch.float32, torch.device("cpu")).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["MaskedLM", "PreTraining"])
@torch.no_grad()
def test_logits_are_those_of_their_head(kind: str, tied: bool, tmp_path: Path) -> None:
    reference = theirs(kind, tmp_path / "model", tied=tied)
    model = ours(tmp_path / "model")
    assert model.spec.head_transform and model.spec.head_bias
    assert model.spec.parameters == sum(p.numel() for p in model.parameters())
    given = reference(TOKENS)
    expected = given.logits if kind == "MaskedLM" else given.prediction_logits
    assert float((model(TOKENS) - expected).abs().max()) < 1e-4
    plain = torch.nn.functional.linear(model.hidden(TOKENS), model.head_VD, model.head_bias)
    assert float((plain - expected).abs().max()) > 0.1, "the transform must matter"


@pytest.mark.parametrize("kind", ["MaskedLM", "PreTraining"])
def test_it_is_written_for_their_class(kind: str, tmp_path: Path) -> None:
    theirs(kind, tmp_path / "model")
    done = export(tmp_path / "model", tmp_path / "out", reference=True)
    assert done.parity.difference_readers is not None
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == ["BertForMaskedLM"]
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        difference = (again(TOKENS).logits - ours(tmp_path / "model")(TOKENS)).abs().max()
    assert float(difference) < 1e-4


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta"])
@torch.no_grad()
def test_that_of_roberta_is_read_and_written(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=42, initializer_range=0.2,
    )  # fmt: skip
    reference = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    reference.lm_head.bias.add_(0.3 * torch.randn(97))
    reference.save_pretrained(tmp_path / "model")
    model = ours(tmp_path / "model")
    assert model.spec.context == 40 and model.spec.head_transform and not model.spec.pooler
    assert float((model(TOKENS) - reference(TOKENS).logits).abs().max()) < 1e-4
    done = export(tmp_path / "model", tmp_path / "out", reference=True)
    assert done.parity.difference_readers is not None
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == [f"{kind}ForMaskedLM"]
    assert told["max_position_embeddings"] == 42


def test_a_model_without_the_head_is_read_without_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=48, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path)
    assert not opened(tmp_path).spec.head_transform


def test_a_gate_beside_it_is_refused() -> None:
    shape: ModelSpec = gpt2(layers=1, width=8, heads=1, vocabulary=16, context=8)
    with pytest.raises(BadInput, match="no gate beside it"):
        msgspec.structs.replace(shape, head_transform=True, feed_forward=SwiGLU())
