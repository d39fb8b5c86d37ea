from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from narrows.data.published import Words
from narrows.data.tokenizers import Tokenizer
from narrows.infer.embedding import Embedder, Pooling, Recipe, recipe_of
from narrows.infer.generate import TooLong
from narrows.spec.errors import BadInput

from .conftest import CONTEXT, built, encoder_spec

TEXTS = [[5, 6, 7], [9], [8, 7, 6], [1, 2, 3, 4, 5], [3]]


def encoder(bpe: Tokenizer, pooling: Pooling, normalised: bool = False) -> Embedder:
    model = built(encoder_spec(), seed=2, deviation=4.0)
    return Embedder(model, Words(bpe), Recipe(pooling, normalised, CONTEXT))


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max"])
def test_a_vector_is_pooled_from_its_own_hidden_states(bpe: Tokenizer, pooling: Pooling) -> None:
    made = encoder(bpe, pooling)
    found_ND = made.embed(TEXTS)
    for tokens, found_D in zip(TEXTS, found_ND, strict=True):
        with torch.inference_mode():
            x_TD = made.model.hidden(torch.tensor([tokens]))[0]
        wanted = {"mean": x_TD.mean(0), "first": x_TD[0], "last": x_TD[-1], "max": x_TD.amax(0)}
        torch.testing.assert_close(found_D, wanted[pooling], rtol=1e-5, atol=1e-5)
    normed_ND = encoder(bpe, pooling, normalised=True).embed(TEXTS)
    torch.testing.assert_close(normed_ND, torch.nn.functional.normalize(found_ND, dim=-1))


def test_a_text_longer_than_it_reads_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(TooLong, match=f"text 2 is {CONTEXT + 1} tokens"):
        encoder(bpe, "mean").embed([[1], [1] * (CONTEXT + 1)])


def written(folder: Path, kinds: list[str], modes: dict[str, Any], most: int) -> Path:
    """What sentence-transformers leaves in a folder."""
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most}))
    return folder


def test_what_its_makers_wrote_is_followed(tmp_path: Path) -> None:
    assert recipe_of(tmp_path, 512) == Recipe("mean", False, 512)
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = written(tmp_path, ["Transformer", "Pooling", "Normalize"], modes, 256)
    assert recipe_of(folder, 512) == Recipe("first", True, 256)
    assert recipe_of(folder, 128).tokens_max == 128


@pytest.mark.parametrize(
    ("kinds", "mode", "said"),
    [
        (["Transformer", "Pooling", "Dense"], "pooling_mode_cls_token", "a module Dense"),
        (["Transformer", "Pooling"], "pooling_mode_weightedmean_tokens", "weightedmean"),
    ],
)
def test_what_is_not_computed_here_is_refused(
    tmp_path: Path, kinds: list[str], mode: str, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        recipe_of(written(tmp_path, kinds, {mode: True}, 256), 512)
