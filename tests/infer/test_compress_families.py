"""Every family that GGUF has, rounded by every method that it allows, computes nearly the same."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from narrows.adapt.method import AWQ, GPTQ, Method, Round
from narrows.adapt.quantize import Rounding
from narrows.data.published import Words
from narrows.data.tokenizers import Tokenizer
from narrows.infer.compress import compress
from narrows.infer.loading import load
from narrows.infer.source import Source
from narrows.model.configuration import read_config
from narrows.spec.errors import BadInput
from tests.model.conftest import built
from tests.model.families import FOR_GGUF, config

from .conftest import VOCABULARY

METHODS: dict[str, Method] = {"round": Round(), "gptq": GPTQ(), "awq": AWQ(steps=3)}
REFUSED = {("mixtral", "gptq"), ("mixtral", "awq"), ("qwen3 of experts", "gptq"),
           ("qwen3 of experts", "awq"), ("olmo2", "awq")}  # fmt: skip
WIDE = {"hidden_size": 64, "intermediate_size": 96}
"""Rows of whole groups, which the families' own sizes are not."""
PAIRED = "phi3 stretched pair by pair"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FOR_GGUF)
def test_a_family_computes_nearly_the_same(
    name: str, method: str, bpe: Tokenizer, tmp_path: Path
) -> None:
    wide = {"n_embd": 64} if name == "gpt2" else WIDE
    told = {**config(name), **FOR_GGUF[name], **wide}
    if name == PAIRED:
        factors = {"short_factor": [1.0, 1.25, 2.5, 4.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
        told["rope_parameters"] = {**told["rope_parameters"], **factors}
    (tmp_path / "config.json").write_text(json.dumps(told))
    shape = msgspec.structs.replace(read_config(tmp_path), vocabulary=VOCABULARY)
    model = built(shape).eval()
    weights = {key: each.detach() for key, each in model.named_parameters()}
    given = Source("tiny", shape, weights, torch.float32, Words(bpe), told["model_type"])
    random = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(VOCABULARY, (4, 24), generator=random)
    rounding, path = Rounding("q8_0", METHODS[method], tokens_BT), tmp_path / "a.gguf"
    if (name, method) in REFUSED:
        with pytest.raises(BadInput):
            compress(given, path, rounding)
        assert not path.exists()
        return
    assert compress(given, path, rounding).exported.parity.difference == 0.0
    with torch.no_grad():
        expected, found = (each(tokens_BT) for each in (model, load(path, precision="fp32").model))
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_rows_of_no_whole_groups_are_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("phi3")))
    shape = msgspec.structs.replace(read_config(tmp_path), vocabulary=VOCABULARY)
    weights = {key: each.detach() for key, each in built(shape).named_parameters()}
    given = Source("tiny", shape, weights, torch.float32, Words(bpe), "phi3")
    with pytest.raises(BadInput, match="no matrix whose rows are whole groups"):
        compress(given, tmp_path / "a.gguf", Rounding("q4_0"))
