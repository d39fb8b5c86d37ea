"""Ours against the harness' own `hf` backend: one folder, one task file, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from narrows.cli.main import main
from narrows.data.tokenizers import Tokenizer
from narrows.evaluate import harness
from narrows.evaluate.assess import assess
from narrows.evaluate.assessment import Manner, Tasks
from narrows.spec.errors import BadInput
from tests.infer.conftest import CONTEXT, TEXT, VOCABULARY

Said = pytest.CaptureFixture[str]
QUESTIONS = [
    {"question": text, "choices": choices, "label": n % len(choices), "text": TEXT[n:], "said": "O"}
    for n, (text, choices) in enumerate([
        ("ROMEO: But,", ["soft", "the sun is", "Romeo"]),
        ("It is the east", ["and Juliet is the sun", "refuse thy name"]),
        ("JULIET: " * 9, ["O Romeo", "what light"]),
        ("Deny thy father ", ["and refuse", "thy name", "Juliet", "5 €"]),
    ])
]  # fmt: skip
CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
WRITING = """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs:
  until: ["e", "\\n"]
  max_gen_toks: 9
metric_list:
  - metric: exact_match
"""


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput) as caught:
        harness.refuse_absent()
    assert caught.value.hint == "pip install 'narrows[harness]'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer) -> Path:
    """A tiny Llama as transformers saves it, with the tokenizer."""
    pytest.importorskip("lm_eval")
    transformers: Any = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, intermediate_size=96,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
            initializer_range=0.2, bos_token_id=0, eos_token_id=0,
        )
    ).save_pretrained(path)  # fmt: skip
    bpe._tokenizer.save(str(path / "plain.json"))
    end = "<|endoftext|>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "plain.json"), bos_token=end, eos_token=end, pad_token=end
    ).save_pretrained(path)
    return path


def task(folder: Path, name: str, body: str) -> str:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    head = f"task: {name}\ndataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n"
    path = folder / f"{name}.yaml"
    path.write_text(f"{head}    test: {folder / 'rows.jsonl'}\n{body}")
    return str(path)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def by_hf(folder: Path, path: str, **options: object) -> dict[str, Any]:
    import lm_eval
    import lm_eval.tasks

    told = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(folder), "dtype": "float32"}, tasks=[path],
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False), bootstrap_iters=0,
        device="cpu", **options,
    )  # fmt: skip
    assert told is not None
    return told


@pytest.mark.parametrize(
    ("name", "body"), [("choice", CHOICE), ("rolling", ROLLING), ("writing", WRITING)]
)
@pytest.mark.parametrize("batch", [1, 8])
def test_our_numbers_are_those_of_hf(folder: Path, name: str, body: str, batch: int) -> None:
    path = task(folder, name, body)
    theirs = by_hf(folder, path)
    found = assess(folder, Tasks(task=path), Manner(batch=batch), talk=print)
    expected = {
        f"{name} {key.partition(',')[0]}": number
        for key, number in theirs["results"][name].items()
        if "," in key and "stderr" not in key
    }
    assert {each.name: each.value for each in found.metrics} == pytest.approx(expected, rel=1e-5)
    assert found.metrics and all(each.form for each in found.metrics)
    assert [each.number for each in found.items] == [1, 2, 3, 4]
    said = [each["filtered_resps"][0] for each in theirs["samples"][name]]
    assert [each.answer for each in found.items] == (said if name == "writing" else [None] * 4)


def test_single_answers_and_likelihoods_are_those_of_hf(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    before = harness._results

    def keep(*given: Any) -> Any:
        kept.update(before(*given)["samples"])
        return before(*given)

    monkeypatch.setattr(harness, "_results", keep)
    for name, body in (("choice", CHOICE), ("writing", WRITING)):
        path = task(folder, name, body)
        theirs = by_hf(folder, path)["samples"][name]
        assess(folder, Tasks(task=path), Manner(), talk=print)
        for one, other in zip(kept[name], theirs, strict=True):
            assert one["target"] == other["target"]
            if name == "writing":
                assert one["resps"] == other["resps"]
                continue
            for ours, hfs in zip(one["resps"], other["resps"], strict=True):
                assert float(ours[0][0]) == pytest.approx(float(hfs[0][0]), rel=1e-5)
                assert ours[0][1] == hfs[0][1]


def test_tasks_are_a_verb(folder: Path, capsys: Said) -> None:
    path = task(folder, "choice", CHOICE)
    assert main(["evaluate", str(folder), "--tasks", path, "--json", "--limit", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["metrics"]] == ["choice acc", "choice acc_norm"]
    assert len(told["items"]) == 3 and told["notes"][0].startswith("lm-evaluation-harness ")


def test_questions_that_were_cut_are_told(folder: Path) -> None:
    long = json.dumps({**QUESTIONS[0], "question": "light " * CONTEXT})
    path = task(folder, "choice", CHOICE)
    (folder / "rows.jsonl").write_text(long)
    found = assess(folder, Tasks(task=path), Manner(), talk=print)
    assert found.notes[1] == "3 questions were longer than the context and lost their beginning"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("output_type: multiple_choice\ndoc_to_text: [", "cannot load the task"),
        (WRITING + "", "by num_beams, which narrows does not know"),
        (WRITING.replace("max_gen_toks: 9", "max_gen_toks: 48"), "an answer of 48 tokens"),
    ],
)
def test_what_a_task_asks_in_vain(folder: Path, body: str, what: str) -> None:
    if "num_beams" in what:
        body = body.replace("max_gen_toks: 9", "max_gen_toks: 9\n  num_beams: 4")
    with pytest.raises(BadInput, match=what):
        assess(folder, Tasks(task=task(folder, "vain", body)), Manner(), talk=print)


@pytest.mark.slow
def test_an_unknown_task_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="cannot load the task no-such-task"):
        assess(folder, Tasks(task="no-such-task"), Manner(), talk=print)
