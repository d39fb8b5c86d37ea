from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest

from narrows.hardware import find
from narrows.infer import account as module
from narrows.infer.account import Account, told
from narrows.infer.generate import generate
from narrows.infer.loading import Generator
from narrows.spec.machine import CachePrecision, Machine
from narrows.spec.record import load, save

RECORDED = Path(__file__).parents[1] / "cli" / "machine.toml"
PROMPT = "ROMEO: what light"


@pytest.fixture
def machine() -> Machine:
    return load(Machine, RECORDED)


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine | None], None]:
    return lambda known: monkeypatch.setattr(module, "machine_known", lambda: known)


def closed(generator: Generator, run: Path, tokens: int = 9) -> tuple[Any, Any, Any]:
    account, generation = Account(run), generate(generator, PROMPT, tokens=tokens)
    list(generation)
    return generation, *account.close(generator, generation)


@pytest.mark.parametrize("kept", [None, "int8"])
def test_measured_is_what_the_tokens_took(
    generator: Generator, machine: Machine, knows: Any, tmp_path: Path,
    kept: CachePrecision | None,
) -> None:  # fmt: skip
    knows(machine)
    generator = generator._replace(cache=kept)
    generation, predicted, measured = closed(generator, tmp_path)
    assert len(generation.seconds) == 9 and all(each > 0 for each in generation.seconds)
    assert measured.first_token_s == generation.seconds[0]
    assert measured.per_token_s == pytest.approx(median(generation.seconds[1:]))
    assert measured.total.seconds == pytest.approx(sum(generation.seconds))
    assert measured.total.steps == predicted.total.steps == 8
    assert measured.memory.cache == generation.cache_bytes == predicted.memory.cache
    assert measured.memory.weights == predicted.memory.weights
    assert sum(row.flop for row in measured.rows) == sum(row.flop for row in predicted.rows)


def test_both_are_told_with_the_error(
    generator: Generator, machine: Machine, knows: Any, tmp_path: Path
) -> None:
    knows(machine)
    _, predicted, measured = closed(generator, tmp_path)
    double = msgspec.structs.replace(
        measured, memory=msgspec.structs.replace(measured.memory, peak=2 * predicted.memory.peak)
    )
    lines = told(predicted, double).splitlines()
    assert lines[0].split() == ["predicted", "measured"]
    assert [line[:11].strip() for line in lines[1:]] == ["first token", "per token", "memory"]
    assert lines[3].endswith("-50%")


def test_a_single_token_has_nothing_between(
    generator: Generator, machine: Machine, knows: Any, tmp_path: Path
) -> None:
    knows(machine)
    _, predicted, measured = closed(generator, tmp_path, tokens=1)
    assert "per token" not in told(predicted, measured)


def test_without_a_probe_it_is_measured_alone(
    generator: Generator, knows: Any, tmp_path: Path
) -> None:
    knows(None)
    _, predicted, measured = closed(generator, tmp_path)
    assert predicted is None and measured.first_token_s > 0
    assert told(None, measured).splitlines()[-1].endswith("narrows probe --refresh")


def test_a_run_trained_here_tells_of_this_machine(
    generator: Generator, machine: Machine, knows: Any, tmp_path: Path
) -> None:
    knows(None)
    save(msgspec.structs.replace(machine, fingerprint="another"), tmp_path / "machine.toml")
    assert closed(generator, tmp_path)[1] is None
    here = msgspec.structs.replace(machine, fingerprint=find.fingerprint())
    save(here, tmp_path / "machine.toml")
    assert closed(generator, tmp_path)[1] is not None
