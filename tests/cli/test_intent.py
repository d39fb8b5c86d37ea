from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from narrows.cli import intent
from narrows.cli.parser import Parser
from narrows.spec.errors import BadInput
from narrows.spec.job import Job, ModelIntent
from narrows.spec.model import llama
from narrows.spec.plan import Start
from narrows.spec.units import Seconds


def parse(*words: str) -> argparse.Namespace:
    parser = Parser(prog="narrows plan", examples="")
    intent.arguments(parser, file="job.toml")
    return parser.parse_args(words)


def job(*words: str) -> Job:
    read = intent.read(parse(*words))
    assert isinstance(read, Job)
    return read


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "job.toml"
    path.write_text(
        'name = "plays"\n[data]\ncorpus = "shakespeare"\nvocabulary = 512\n'
        '[layout]\nrecompute = "none"\nthreads = 1\n[budget]\nmoney = "$1"\n'
    )
    return str(path)


def test_arguments_alone_make_a_job() -> None:
    made = job("--corpus", "shakespeare", "--budget", "5min")
    assert made.name == "shakespeare" and made.data is not None
    assert made.budget is not None and made.budget.time == Seconds(300)


@pytest.mark.parametrize(
    ("corpus", "name"),
    [("hf:roneneldan/TinyStories", "TinyStories"), ("../my texts/", "my-texts"), ("/", "job")],
)
def test_a_run_is_named_after_its_corpus(corpus: str, name: str) -> None:
    assert job("--corpus", corpus).name == name


def test_options_override_the_file(file: str) -> None:
    made = job(file, "--corpus", "python", "--budget", "1h", "--set", "model.layers=3")
    assert made.data is not None
    assert (made.data.corpus, made.data.vocabulary) == ("python", 512)
    assert made.budget is not None and made.budget.money is None
    assert made.model.layers == 3


def test_allowing_recompute_lifts_what_the_job_forbids(file: str) -> None:
    assert job(file).layout.recompute == "none"
    made = job(file, "--allow", "recompute")
    assert made.layout.recompute is None and made.layout.threads == 1


def test_an_override_of_an_unknown_key_says_what_was_meant(file: str) -> None:
    with pytest.raises(BadInput) as caught:
        intent.read(parse(file, "--set", "model.layer=3"))
    assert caught.value.hint == "did you mean layers?"


def test_a_plan_is_known_by_its_content_and_takes_no_options(tmp_path: Path) -> None:
    path = tmp_path / "anything.toml"
    path.write_text('name = "x"\n[made_from]\njob = "0"\n')
    with pytest.raises(BadInput, match="is a plan"):
        intent.read(parse(str(path), "--set", "seed=1"))
    with pytest.raises(BadInput, match="made_from.machine is missing"):
        intent.read(parse(str(path)))


def test_a_hint_speaks_of_what_was_given(file: str) -> None:
    hint = "narrows plan job.toml --set model.layers=3"
    chosen = parse("--corpus", "my text", "--budget", "5 min")
    assert intent.concrete(hint, chosen) == (
        "narrows plan --corpus 'my text' --budget '5 min' --set model.layers=3"
    )
    assert intent.concrete(hint, parse(file)) == f"narrows plan {file} --set model.layers=3"
    assert intent.concrete(hint, argparse.Namespace()) == hint


def test_a_model_that_was_opened_before_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    path, words, opened = tmp_path / "model.gguf", tmp_path / "words", list[Path]()
    path.write_bytes(b"weights")
    words.mkdir()
    (words / "tokenizer.json").write_text("{}")
    spec = llama(layers=2, width=32, heads=4, vocabulary=40, context=24)
    start = Start(path=str(path), family="llama", digest="0", model=spec, words=str(words))

    def once(path: Path, talk: object) -> Start:
        opened.append(path)
        return start

    monkeypatch.setattr("narrows.train.start.started", once)
    wanted = Job(name="more", model=ModelIntent(start=str(path)))
    assert intent.started(wanted) == intent.started(wanted) == start
    assert opened == [path]


def test_nothing_is_measured_or_prepared_for_a_model_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(intent, "machine", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr(intent, "dataset", lambda *_: pytest.fail("it was prepared"))
    odd = parse("--corpus", "shakespeare", "--set", "model.width=100", "--set", "model.heads=3")
    with pytest.raises(BadInput, match="100 cannot be divided among 3 heads"):
        intent.planned(intent.read(odd), intent.machine(None))
