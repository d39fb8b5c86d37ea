"""Passes of a reader, and what they are predicted to take."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.cli.main import main
from narrows.evaluate import passes as module
from narrows.evaluate.assessment import Taken
from narrows.evaluate.likelihood import Reader, Reading
from narrows.evaluate.passes import Decode, Passes, Prefill, Whole
from narrows.evaluate.writing import Manuscript, Prompt, write
from narrows.infer.loading import Generator
from narrows.infer.sampling import Sampling
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
    assert planned == Counter([Whole(3, 9), Whole(2, 5)])
    assert reader.passes.made == Counter()
    reader.read(wanted)
    reader.read(readings(4))
    assert reader.passes.made == planned + Counter([Whole(1, 4)])
    assert reader.passes.seconds > 0.0


def test_long_sequences_are_read_one_by_one(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("narrows.evaluate.likelihood._POSITIONS", 20)
    found = Reader(model, batch=8).planned(readings(30, 10, 9, 5, 5, 5, 5, 5))
    assert found == Counter([Whole(1, 30), Whole(2, 10), Whole(4, 5), Whole(1, 5)])


def test_the_sum_of_all_passes_is_predicted_and_the_widest_one_s_memory(
    model: Transformer, machine: Machine
) -> None:
    told = Passes(model).expected
    one, other = told({Whole(1, 16): 1}), told({Whole(4, 32): 1})
    both = told({Whole(1, 16): 3, Whole(4, 32): 2})
    assert one and other and both
    assert both.seconds == pytest.approx(3 * one.seconds + 2 * other.seconds)
    assert one.seconds < other.seconds and one.memory < other.memory == both.memory
    assert told({}) is None


def test_what_training_taught_the_record_is_left_out(
    model: Transformer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = {Whole(2, 24): 1}
    before = Passes(model).expected(passes)
    taught = msgspec.structs.replace(machine, calibration={"gemm": 2.0})
    monkeypatch.setattr(module, "machine_known", lambda: taught)
    assert Passes(model).expected(passes) == before


def test_nothing_is_predicted_for_what_was_not_probed(
    model: Transformer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = msgspec.structs.replace(machine.device, matmul=())
    for known in (None, msgspec.structs.replace(machine, device=device)):
        monkeypatch.setattr(module, "machine_known", lambda known=known: known)
        assert Passes(model).expected({Whole(1, 8): 1}) is None


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


@pytest.mark.parametrize("choices", [{}, {"choices": ["light", "window"]}])
def test_answers_that_are_chosen_or_written_end_so_too(
    make_run: MakeRun, machine: Machine, tmp_path: Path, capsys: Any, choices: dict[str, Any]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "What", "answer": "light", **choices}))
    assert main(["evaluate", str(make_run()), "--rows", str(rows), "--tokens", "4"]) == 0
    *_, head, answering, memory = capsys.readouterr().out.splitlines()
    assert head.split() == ["predicted", "measured"]
    assert answering.startswith("answering ") and memory.startswith("memory ")


def test_answers_of_full_length_make_the_passes_that_were_planned(
    model: Transformer, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, planned = Passes(model), list[Any]()
    monkeypatch.setattr(passes, "announce", lambda each, *_: planned.append(each))
    prompts = [Prompt([1] * length, length) for length in (3, 5, 9)]
    monkeypatch.setattr(generator.tokenizer, "ends", frozenset())
    write(generator, prompts, Manuscript(6, Sampling(temperature=0.0), (), batch=2), passes, print)
    assert passes.made == planned[0]
    assert passes.made == Counter({
        Prefill(2, 3, 11): 1, Decode.at(2, 3): 7, Prefill(1, 9, 15): 1, Decode.at(1, 9): 5
    })  # fmt: skip
    assert passes.seconds > 0.0


def test_more_sequences_and_longer_pasts_take_longer_and_longer_answers_more_memory(
    model: Transformer, machine: Machine
) -> None:
    told = Passes(model).expected
    first = Prefill(1, 8, 40)
    one, many = (told({first: 1, Decode(count, 32): 9}) for count in (1, 8))
    assert one and many and 0.0 < one.seconds < many.seconds
    short, long = told({Prefill(4, 8, 12): 1}), told({Prefill(4, 8, 60): 1})
    assert short and long and short.memory < long.memory and short.seconds == long.seconds


def test_long_evaluations_are_announced(model: Transformer, machine: Machine) -> None:
    said = list[str]()
    passes = Passes(model)
    passes.announce({Whole(1, 32): 3}, "3 tokens", said.append)
    assert not said
    passes.announce({Whole(1, 32): 10_000_000}, "many tokens", said.append)
    (line,) = said
    assert line.startswith("many tokens: ") and line.endswith(" predicted")
