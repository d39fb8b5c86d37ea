from __future__ import annotations

from pathlib import Path

import pytest

from narrows.infer import account
from narrows.infer.loading import Generator
from narrows.infer.server.forecast import UNKNOWN, Asked, Speed, measured, predicted, speeds
from narrows.infer.tally import Tally
from narrows.spec.machine import Machine
from narrows.spec.record import load

RECORDED = Path(__file__).parents[2] / "cli" / "machine.toml"


def test_one_text_and_all_slots_are_predicted(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(account, "machine_known", lambda: load(Machine, RECORDED))
    one, eight = speeds(generator, tmp_path, 8, Asked(10, 5))
    assert (one.texts, eight.texts) == (1, 8)
    assert one.first_token_s == eight.first_token_s
    assert one.per_token_s < eight.per_token_s < 8 * one.per_token_s
    assert speeds(generator, tmp_path, 1, Asked(10, 5)) == [one]
    # Longer than the model reads: as much as it does.
    assert speeds(generator, tmp_path, 1, Asked(10_000, 10_000))[0].per_token_s == 0.0
    said = predicted([Speed(8, 0.25, 0.01)], Asked(10, 5))
    assert said == (
        "predicted, 10 tokens answered by 5, "
        "8 texts at once: first token 250 ms, each more 10 ms (800 tokens/s)"
    )


def test_a_machine_that_is_not_known_predicts_nothing(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(account, "machine_known", lambda: None)
    assert speeds(generator, tmp_path, 8, Asked()) == []
    assert predicted([], Asked()) == UNKNOWN


def test_what_was_done_is_told_by_its_means() -> None:
    tally = Tally()
    assert Asked.mean(tally) is None
    for seconds in (0.1, 0.3):
        tally.first.count(seconds)
    for seconds in (0.01, 0.02, 0.03):
        tally.each.count(seconds)
    tally.tokens_read, tally.tokens_reused, tally.tokens_written = 30, 10, 5
    assert Asked.mean(tally) == Asked(20, 2)
    said = "measured, 2 answers, first token 200 ms, each more 20 ms (means, waiting included)"
    assert measured(tally) == said
