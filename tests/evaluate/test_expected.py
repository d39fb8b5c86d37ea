"""Passes of a reader, and what they are predicted to take."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.cli.main import main
from narrows.evaluate import expected as module
from narrows.evaluate.assessment import Pass, Taken
from narrows.evaluate.expected import Expected
from narrows.evaluate.likelihood import Reader, Reading
from narrows.infer.loading import Generator
from narrows.model.transformer import Transformer
from narrows.spec.machine import Machine
from narrows.spec.record import load
from tests.infer.conftest import MakeRun

RECORDED = Path(__file__).parents[1] / "cli" / "machine.toml"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = load(Machine, RECORDED)
    monkeypatch.setattr(module, "machine_known", lambda: found)
    return found


@pytest.fixture
def model(generator: Generator) -> Transformer:
    return generator.model


def readings(*lengths: int) -> list[Reading]:
    return [Reading([1] * (length + 1), 1) for length in lengths]


def test_what_is_planned_is_made(model: Transformer) -> None:
    reader = Reader(model, batch=3)
    wanted = readings(5, 9, 9, 2, 7)
    planned = reader.planned(wanted)
    assert planned == Counter([Pass(3, 9), Pass(2, 5)])
    assert reader.made == Counter()
    reader.read(wanted)
    reader.read(readings(4))
    assert reader.made == planned + Counter([Pass(1, 4)])
    assert reader.seconds > 0.0


def test_long_sequences_are_read_one_by_one(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("narrows.evaluate.likelihood._POSITIONS", 20)
    found = Reader(model, batch=8).planned(readings(30, 10, 9, 5, 5, 5, 5, 5))
    assert found == Counter([Pass(1, 30), Pass(2, 10), Pass(4, 5), Pass(1, 5)])


def test_the_sum_of_all_passes_is_predicted_and_the_widest_one_s_memory(
    model: Transformer, machine: Machine
) -> None:
    told = Expected(model).of
    one, other = told({Pass(1, 16): 1}), told({Pass(4, 32): 1})
    both = told({Pass(1, 16): 3, Pass(4, 32): 2})
    assert one and other and both
    assert both.seconds == pytest.approx(3 * one.seconds + 2 * other.seconds)
    assert one.seconds < other.seconds and one.memory < other.memory == both.memory
    assert told({}) is None


def test_what_training_taught_the_record_is_left_out(
    model: Transformer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = {Pass(2, 24): 1}
    before = Expected(model).of(passes)
    taught = msgspec.structs.replace(machine, calibration={"gemm": 2.0})
    monkeypatch.setattr(module, "machine_known", lambda: taught)
    assert Expected(model).of(passes) == before


def test_nothing_is_predicted_for_what_was_not_probed(
    model: Transformer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = msgspec.structs.replace(machine.device, matmul=())
    for known in (None, msgspec.structs.replace(machine, device=device)):
        monkeypatch.setattr(module, "machine_known", lambda known=known: known)
        assert Expected(model).of({Pass(1, 8): 1}) is None


def test_it_ends_with_predicted_beside_measured(
    make_run: MakeRun, machine: Machine, tmp_path: Path, capsys: Any
) -> None:
    run = make_run()
    (tmp_path / "a.txt").write_text("What light through yonder window breaks? " * 9)
    words = ["evaluate", str(run), "--text", str(tmp_path / "a.txt")]
    assert main(words) == 0
    *_, head, reading, memory = capsys.readouterr().out.splitlines()
    assert head.split() == ["predicted", "measured"]
    assert reading.startswith("reading ") and memory.startswith("memory ")
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for side in ("predicted", "measured"):
        taken = msgspec.convert(found[side], Taken)
        assert taken.seconds > 0.0 and taken.memory > 0.0
    assert found["measured"]["seconds"] <= found["seconds"]


def test_rows_that_are_only_read_have_it_too_and_written_answers_do_not(
    make_run: MakeRun, machine: Machine, tmp_path: Path, capsys: Any
) -> None:
    run, rows = make_run(), tmp_path / "rows.jsonl"
    chosen = {"prompt": "What", "answer": "light", "choices": ["light", "window"]}
    for row, had in ((chosen, True), ({"prompt": "What", "answer": "light"}, False)):
        rows.write_text(json.dumps(row))
        assert main(["evaluate", str(run), "--rows", str(rows), "--tokens", "4", "--json"]) == 0
        assert ("measured" in json.loads(capsys.readouterr().out)) is had
