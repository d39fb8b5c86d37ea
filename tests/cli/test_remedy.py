from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from narrows.cli.main import main
from narrows.spec import record
from narrows.spec.forecast import Forecast

Said = pytest.CaptureFixture[str]
PLAN = ["plan", "--model", "llama-3.1-8b", "--machine"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, in which no file has the name of a machine or a model."""
    monkeypatch.chdir(tmp_path)


def advised(capsys: Said, *words: str) -> list[list[str]]:
    """The commands that a job which does not fit is answered with."""
    assert main(list(words)) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: the job does not fit: ") and "optimizer " in said
    _, _, hint = said.rstrip().partition("\nhint: ")
    return [shlex.split(line, comments=True) for line in hint.split("\n  or: ")]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["rtx-4090", "--batch", "16", "--context", "2048"],
         ["layout.offload=host", "h200-sxm", "8xrtx-4090", "qlora", "lora"]),
        (["4xh100-sxm", "--set", "recompute=none", "--set", "micro_batch=4", "--pue", "1.1"],
         ["layout.micro_batch=1", "layout.state_bits=8", "layout.chunked_loss=true", "8xh100-sxm",
          "4xh100-nvl", "lora", "qlora", "4096"]),
        (["8xh100-sxm", "--model", "llama-3.1-405b"], ["128xh100-sxm", "qlora"]),
        # In an hour one A10 does not end a step of 4 M tokens, whatever is changed.
        (["a10", "--budget", "1h"], ["b200", "8xa10"]),
    ],
)  # fmt: skip
def test_every_command_that_is_advised_works(
    capsys: Said, words: list[str], changes: list[str]
) -> None:
    commands = advised(capsys, *PLAN, *words)
    assert len(commands) == len(changes)
    for command, change in zip(commands, changes, strict=True):
        assert command[:2] == ["narrows", "plan"] and change in command
        assert main(command[1:]) == 0, command
        capsys.readouterr()


def test_the_pace_that_is_promised_is_the_pace_that_is_planned(capsys: Said) -> None:
    assert main([*PLAN, "3xa100-40gb-sxm", "--goal", "money", "--budget", "1B tokens"]) == 3
    hint = capsys.readouterr().err.partition("\nhint: ")[2].partition("\n")[0]
    command, _, told = hint.partition("  # ")
    assert "--goal money" in command and "--budget '1B tokens'" in command
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    found = record.loads(Forecast, capsys.readouterr().out, source="forecast.json")
    assert found.spread.state_bits == 8
    rate, memory = found.predicted.tokens_per_s, found.predicted.memory.peak
    assert told == f"{rate:,.0f} tokens/s, {memory / 1e9:.1f} GB a device"


def test_what_no_single_change_mends_is_said(capsys: Said) -> None:
    words = ["plan", "--machine", "rtx-3060", "--model", "llama-3.1-405b", "--batch", "1",
             "--context", "512", "--set", "tensor=1", "--set", "pipeline=1"]  # fmt: skip
    assert main(words) == 3
    assert "no single change" in capsys.readouterr().err
