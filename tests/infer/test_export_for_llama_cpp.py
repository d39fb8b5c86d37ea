"""GGUF files as we write them, run by llama.cpp itself, which the package xllamacpp has."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.data.published import Words
from narrows.data.tokenizers import Tokenizer
from narrows.infer.export import export_source
from narrows.infer.source import Source
from narrows.model.configuration import read_config
from tests.model.conftest import built
from tests.model.families import FOR_GGUF, config

from .conftest import TEXT, VOCABULARY

xllamacpp: Any = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
PROMPT = "ROMEO: But, soft! what light"
NEAR = 0.02
"""llama.cpp keeps keys and values in fp16."""


def ask(server: Any, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


# llama.cpp reads Phi's window, and attends to all.
SETTINGS = {**FOR_GGUF, "phi3": {"sliding_window": None}}


@pytest.mark.parametrize("name", SETTINGS)
def test_llama_cpp_computes_the_same(name: str, bpe: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**config(name), **SETTINGS[name]}))
    shape = msgspec.structs.replace(read_config(tmp_path), vocabulary=VOCABULARY)
    model = built(shape).eval()
    weights = {name: each.detach() for name, each in model.named_parameters()}
    kind = config(name)["model_type"]
    # One whose name says phi3 has, to llama.cpp, the tokens of Microsoft's.
    given = Source("tiny", shape, weights, torch.float32, Words(bpe), kind)
    path = export_source(given, tmp_path / "a.gguf").path
    chosen = xllamacpp.CommonParams()
    chosen.model.path, chosen.n_ctx, chosen.n_parallel, chosen.warmup = str(path), 64, 1, False
    chosen.cpuparams.n_threads = 1
    server = xllamacpp.Server(chosen)
    assert ask(server, "/tokenize", content=TEXT)["tokens"] == bpe.encode(TEXT)
    answer = ask(server, "/completion", prompt=PROMPT, n_predict=1, temperature=0, n_probs=8)
    theirs = answer["completion_probabilities"][0]["top_logprobs"]
    with torch.no_grad():
        shares_V = model(torch.tensor([bpe.encode(PROMPT)]))[0, -1].log_softmax(0)
    print(name, [(each["id"], each["logprob"], float(shares_V[each["id"]])) for each in theirs[:2]])
    assert len(theirs) == 8 and theirs[0]["id"] == int(shares_V.argmax())
    for each in theirs:
        assert each["logprob"] == pytest.approx(float(shares_V[each["id"]]), abs=NEAR)
