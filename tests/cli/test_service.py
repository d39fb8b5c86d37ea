from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from narrows.cli.main import main
from narrows.cli.service import command
from narrows.spec.record import from_builtins
from narrows.spec.service import ENGINE_NAMES, Service

ASKED = ["plan", "--machine", "h100-sxm", "--model", "llama-3.1-8b"]


def answered(capsys: pytest.CaptureFixture[str], *more: str) -> Service:
    assert main([*ASKED, *more, "--json"]) == 0
    return from_builtins(Service, json.loads(capsys.readouterr().out))


def test_a_rate_becomes_requests_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "--rate", "4 requests/s", "--answer", "200")
    assert found.requests.rate == 4.0 and found.requests.concurrency is None
    assert found.best.tokens_per_s == pytest.approx(800.0, rel=0.05)
    assert main([*ASKED, "--rate", "90000 requests/s"]) == 3
    said = capsys.readouterr().err
    assert "saturate h100-sxm" in said and 'hint: --rate "' in said


def test_each_option_changes_what_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--serve", "8", "--prompt", "4096", "--answer", "256")
    plain = answered(capsys, *load)
    shared = answered(capsys, *load, "--shared-prefix", "3072")
    assert shared.best.first_token.mean < plain.best.first_token.mean
    chunked = answered(capsys, *load, "--chunk", "512")
    assert chunked.best.pause_s < 0.5 * plain.best.pause_s
    assert chunked.best.first_token.mean > plain.best.first_token.mean
    guessed = answered(capsys, *load, "--accept", "0.8", "--ahead", "3")
    assert guessed.guesses is not None and guessed.guesses.tokens == pytest.approx(2.952)
    assert guessed.best.per_token.mean < plain.best.per_token.mean
    drafted = answered(capsys, *load, "--draft", "llama-3.2-1b")
    assert drafted.guesses is not None and drafted.guesses.draft == "llama-3.2-1b"
    assert drafted.best.held.weights > plain.best.held.weights + 2e9
    narrow = answered(capsys, *load, "--weights", "4")
    assert narrow.best.placement.weight_bits == 4.5
    even = answered(capsys, *load, "--vary", "0")
    assert even.best.first_token.p99 < plain.best.first_token.p99


@pytest.mark.parametrize("option", ["--weights 4", "--vary 0", "--percentile 99", "--goal money"])
def test_a_machine_at_hand_is_not_asked_for_what_is_of_others(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.toml"
    job.write_text('name = "x"\n')
    assert main(["plan", str(job), *option.split()]) == 2
    told = capsys.readouterr().err
    assert f"{option.split()[0]} is of machines of the catalogue" in told


def test_an_engine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--serve", "32", "--prompt", "2048", "--answer", "256")
    known = {
        name: answered(capsys, *load, "--engine", name)
        for name in ENGINE_NAMES
        if name != "narrows"
    }
    assert answered(capsys, *load).engine == "vllm"
    assert all(found.engine == name for name, found in known.items())
    first = {found.best.first_token.mean for found in known.values()}
    assert len(first) == len(known)
    assert main([*ASKED, *load, "--engine", "narrows"]) == 2
    assert "hint: --machine here" in capsys.readouterr().err
    assert main([*ASKED, *load, "--engine", "vlm"]) == 2
    assert ", ".join(ENGINE_NAMES) in capsys.readouterr().err


def test_what_is_planned_for_here_ends_with_what_serves_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answered(capsys, "--serve", "8", "--weights", "4")
    assert command(found) is None
    here = replace(found, engine="narrows")
    told = command(here)
    assert told is not None
    assert told.startswith("narrows serve MODEL --slots 8 --precision int4   (llama-3.1-8b: its")
    file = tmp_path / "a model.gguf"
    file.touch()
    served = command(replace(here, model_name=str(file)))
    assert served == f"narrows serve '{file}' --slots 8 --precision int4"


def test_one_token_is_answered_without_a_further_step(capsys: pytest.CaptureFixture[str]) -> None:
    best = answered(capsys, "--serve", "1", "--answer", "1").best
    assert best.tokens_per_s == pytest.approx(1.0 / best.first_token.mean)
    longer = answered(capsys, "--serve", "1", "--answer", "9").best
    whole = longer.first_token.mean + 8 * longer.per_token.mean
    assert longer.tokens_per_s == pytest.approx(9.0 / whole)


def test_a_card_of_integers_answers_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    """FlightLLM reached 55 tokens/s of Llama 2 7B on one (arXiv:2401.03868)."""
    found = answered(capsys, "--machine", "alveo-u280", "--serve", "1")
    assert found.best.placement.weight_bits == 4.5
    assert 30.0 < 1.0 / found.best.per_token.mean < 90.0
    assert not any("16 bits" in each.name for each in found.changes if "weights" in each.name)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--serve", "2", "--rate", "1 req/s"], "both say how many come"),
        (["--serve", "0"], "--serve is 0"),
        (["--serve", "2", "--chunk", "0"], "--chunk is 0"),
        (["--serve", "2", "--shared-prefix", "1024"], "of a prompt of 1024 tokens"),
        (["--serve", "2", "--accept", "1.5"], "--accept is 1.5"),
        (["--serve", "2", "--ahead", "0"], "--ahead is 0"),
        (["--serve", "2", "--vary", "-1"], "--vary is -1"),
        (["--rate", "5"], "has no unit"),
        (["--rate", "0 requests/s"], "--rate is 0"),
        (["--serve", "2", "--draft", "no-such-model"], "no model"),
        (["--serve", "2", "--draft", "llama-3.1-70b"], "no smaller than llama-3.1-8b"),
        (["--serve", "2", "--first-token", "0 s"], "--first-token is 0 s"),
        (["--serve", "2", "--per-token", "-1 ms"], "--per-token is -1 ms"),
        (["--rate", "inf requests/s"], "is not a quantity"),
        (["--serve", "2", "--prompt", "130000", "--answer", "2000"], "the context of 131,072"),
        (["--serve", "2", "--model", "bert-base"], "reads text and writes none"),
        (["--serve", "2", "--budget", "1 day"], "--budget says nothing of serving"),
        (["--serve", "2", "--batch", "3"], "--batch says nothing of serving"),
        (["--serve", "2", "--goal", "energy"], "--goal energy is of training"),
        (["--serve", "2", "--draft", "gpt2"], "gpt2 knows 50,257 tokens, and llama-3.1-8b 128,256"),
        (["--weights", "4"], "--weights is of serving"),
        (["--first-token", "1 s"], "--first-token is of serving"),
        (["--machine", "alveo-u280", "--serve", "1", "--weights", "16"], "computes integers alone"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASKED, *more]) == 2
    told = capsys.readouterr().err
    assert said in told and "hint:" in told


def test_limits_that_one_device_misses_name_a_machine_that_keeps_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    large = ["plan", "--machine", "h100-sxm", "--model", "llama-3.1-405b", "--serve", "2"]
    assert main(large) == 3
    told = capsys.readouterr().err
    assert "does not fit" in told and "--machine 4xh100-sxm works" in told
    assert main([*large[:2], "4xh100-sxm", *large[3:]]) == 0


def test_a_model_that_was_stretched_reads_longer_prompts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = ("--serve", "2", "--prompt", "130000", "--answer", "2000", "--context", "140000")
    assert answered(capsys, *long).requests.prompt == 130_000


def test_a_short_context_has_shorter_prompts_unless_they_are_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = answered(capsys, "--serve", "2")
    assert (found.requests.prompt, found.requests.answer) == (1024, 256)
    short = [*ASKED[:-1], "gpt2", "--serve", "2"]
    for more, lengths in (([], (768, 256)), (["--context", "64"], (32, 32))):
        assert main([*short, *more, "--json"]) == 0
        found = from_builtins(Service, json.loads(capsys.readouterr().out))
        assert (found.requests.prompt, found.requests.answer) == lengths
    assert main([*short, "--prompt", "1000"]) == 2
    said = capsys.readouterr().err
    # Embeddings of positions are not stretched: --context would be refused.
    assert "more than the context of 1,024 of gpt2" in said and "--context" not in said
    assert main([*ASKED, "--serve", "2", "--prompt", "200000"]) == 2
    assert "or --context 200256 where the model was stretched to it" in capsys.readouterr().err


def test_a_page_is_written_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "served.html"
    found = answered(capsys, "--serve", "8", "--page", str(page))
    html = page.read_text(encoding="utf-8")
    assert "llama-3.1-8b served by 1 × NVIDIA H100" in html
    assert found.changes and found.sweep


def test_without_a_model_nothing_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--machine", "h100-sxm", "--serve", "2"]) == 2
    assert "which model is served" in capsys.readouterr().err
