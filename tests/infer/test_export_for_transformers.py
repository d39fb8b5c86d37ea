"""Every family's weights as we write them, read by transformers and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from narrows.infer.export import export, export_source
from narrows.infer.source import Source
from narrows.model.configuration import read_config
from narrows.model.describing import kind_of
from tests.model.conftest import built
from tests.model.families import CONFIGS, config

from .conftest import MakeRun, spec

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    told = {**config(name), "architectures": None}
    (tmp_path / "config.json").write_text(json.dumps(told))
    shape = read_config(tmp_path)
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    given = Source(name, shape, weights, torch.float32, None, told["model_type"], config=told)
    done = export_source(given, tmp_path / "out", reference=True)
    assert done.parity.readers[1].startswith("transformers ")
    assert done.parity.difference_readers is not None and done.parity.largest > 0.1


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama 3.1", "llama yarn", "mistral", "qwen2",
                                  "qwen3", "gemma2", "gemma3", "phi", "olmo", "olmo2", "mixtral",
                                  "qwen3 of experts", "llama stretched"])  # fmt: skip
def test_a_config_of_ours_is_the_class_that_computes_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(name)))
    shape = read_config(tmp_path)
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    kind = config(name)["model_type"]
    assert kind_of(shape, kind) == kind
    given = Source(name, shape, weights, torch.float32, None, kind)
    assert len(export_source(given, tmp_path / "out", reference=True).parity.readers) == 2


@pytest.mark.parametrize("tokenizer", ["bpe", "character", "spaced"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_run_is_read_with_its_words(
    tokenizer: str, kind: str, make_run: MakeRun, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = request.getfixturevalue(tokenizer)
    run = make_run(shape=spec(kind), tokenizer=words)
    assert export(run, tmp_path / "out", reference=True).parity.tokens > 100
