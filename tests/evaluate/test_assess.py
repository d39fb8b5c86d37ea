from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from narrows.cli import speak
from narrows.cli.main import main
from narrows.evaluate.assess import assess
from narrows.evaluate.assessment import Assessment, Manner, Texts
from narrows.spec.record import load
from tests.infer.conftest import CONTEXT, TEXT, VOCABULARY, MakeRun

Said = pytest.CaptureFixture[str]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.txt").write_text(TEXT[10 * number :])
    return folder


def test_a_run_is_told_from_another_checkpoint_of_it(
    make_run: MakeRun, texts: Path, capsys: Said, tmp_path: Path
) -> None:
    run, out = make_run(steps=(10, 20), best=10), tmp_path / "out.json"
    other = str(run / "checkpoints" / "step-00000020")
    words = ["evaluate", str(run), "--text", str(texts), "--against", other, "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "9 documents" in said.out and "bits per byte" in said.out and "against" in said.out
    assert said.err.splitlines()[-1] == f"next: narrows evaluate {out} --against MODEL"
    kept = load(Assessment, out)
    assert kept.checkpoint == "step-00000010" and kept.data == Texts(corpus=str(texts))
    (comparison,) = kept.comparisons
    assert comparison.checkpoint == "step-00000020"
    assert [each.metric for each in comparison.differences] == [
        "loss", "perplexity", "bits per byte"
    ]  # fmt: skip
    assert all(each.low is not None for each in comparison.differences)


def test_what_was_kept_is_compared_without_the_model(
    make_run: MakeRun, texts: Path, capsys: Said, tmp_path: Path
) -> None:
    run = make_run(steps=(10, 20), best=10)
    names = [str(tmp_path / f"{step}.json") for step in (10, 20)]
    for step, name in zip((10, 20), names, strict=True):
        words = ["--checkpoint", f"step-000000{step}", "--text", str(texts), "--out", name]
        assert main(["evaluate", str(run), *words]) == 0
    (run / "plan.toml").unlink()
    capsys.readouterr()
    assert main(["evaluate", names[0], "--against", names[1], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    kept = [load(Assessment, name) for name in names]
    (loss,) = (d for d in told["comparisons"][0]["differences"] if d["metric"] == "loss")
    assert loss["value"] == pytest.approx(kept[0].metrics[0].value - kept[1].metrics[0].value)
    assert main(["evaluate", names[0], "--text", str(texts)]) == 2


def test_a_run_of_bf16_is_computed_in_fp32(make_run: MakeRun, texts: Path) -> None:
    run = make_run(precision="bf16")
    data = Texts(corpus=str(texts))
    exact = assess(run, data, Manner(limit=3), talk=print)
    rounded = assess(run, data, Manner(limit=3, precision="bf16"), talk=print)
    assert (exact.precision, rounded.precision) == ("fp32", "bf16")
    assert exact.metrics[0].value == pytest.approx(rounded.metrics[0].value, rel=0.05)
    assert exact.metrics[0].value != rounded.metrics[0].value


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "nothing says what to ask"),
        (["--text", "a", "--rows", "b"], "one thing is asked at a time"),
        (["--text", "a", "--template", "b=1"], "--template is read with --rows alone"),
        (["--rows", "a", "--chat"], "--chat is read with --tasks alone"),
        (["--rows", "a", "--shots", "0"], "--shots is read with --tasks alone"),
        (["--text", "absent.txt"], "the corpus absent.txt does not exist"),
        (["--rows", "absent.jsonl"], "absent.jsonl does not exist"),
        (["--text", "shakespeare", "--batch", "0"], "evaluate.batch is 0"),
        (["--text", "shakespeare", "--stride", "99", "--limit", "1"], "would pass over tokens"),
    ],
)
def test_mistakes_are_exit_2(
    make_run: MakeRun, capsys: Said, words: list[str], what: str
) -> None:  # fmt: skip
    assert main(["evaluate", str(make_run()), *words]) == 2
    said = capsys.readouterr().err
    assert what in said and "hint: " in said


def test_what_cannot_be_kept_is_found_before_the_work(make_run: MakeRun, capsys: Said) -> None:
    words = ["--text", "shakespeare", "--out", "result.txt"]
    assert main(["evaluate", str(make_run()), *words]) == 2
    said = capsys.readouterr().err
    assert "hint: --out result.txt.json" in said and "fp32" not in said


def test_what_is_to_be_kept_is_kept_though_nobody_reads_the_answer(
    make_run: MakeRun, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(value: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(speak, "answer_json", gone)
    out = tmp_path / "out.json"
    main(["evaluate", str(make_run()), "--text", str(texts), "--out", str(out), "--json"])
    assert load(Assessment, out).data == Texts(corpus=str(texts))


def test_perplexity_equals_transformers(bpe: Any, tmp_path: Path) -> None:
    """One folder read by both; theirs by the sliding window of their own guide, whose last token
    of a text counts too.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, intermediate_size=96,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
            initializer_range=0.3, bos_token_id=0, eos_token_id=bpe.end_of_document,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "model")
    bpe._tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "a.txt").write_text(TEXT)
    manner = Manner(stride=16)
    found = assess(tmp_path / "model", Texts(corpus=str(tmp_path / "a.txt")), manner, talk=print)
    tokens = [bpe.end_of_document, *bpe.encode(TEXT)]
    nats, counted = 0.0, 1
    while counted < len(tokens):
        stop = CONTEXT + 1 if counted == 1 else min(len(tokens), counted + 16)
        part = torch.tensor([tokens[max(0, stop - CONTEXT - 1) : stop]])
        labels = part.clone()
        labels[0, : part.shape[1] - (stop - counted)] = -100
        with torch.no_grad():
            loss = theirs(part, labels=labels).loss
        nats, counted = nats + float(loss) * (stop - counted), stop
    loss, perplexity, _ = (each.value for each in found.metrics)
    assert loss == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert perplexity == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=1e-4)
