from __future__ import annotations

from pathlib import Path

import pytest

from narrows.report.tuned import html, swept_html, text, write
from narrows.spec.tuning import Choice, Range, Swept, Trial, Tuned


def trial(number: int, loss: float | None, outcome: str = "done", message: str = "") -> Trial:
    return Trial(
        number=number, outcome=outcome,  # type: ignore[arg-type]
        values={"train.learning_rate": 0.001 * (number + 1), "train.optimizer": "lion"},
        loss=loss, steps=9, seconds=61.0, joules=900.0, folder=f"trial-{number:03d}",
        message=message,
    )  # fmt: skip


@pytest.fixture
def tuned() -> Tuned:
    return Tuned(
        name="plays",
        axes=(
            Range(key="train.learning_rate", low=1e-4, high=1e-2, log=True),
            Choice(key="train.optimizer", values=("adamw", "lion")),
        ),
        trials=(
            trial(0, 3.2), trial(1, 2.9), trial(2, 9.0, "pruned"),
            trial(3, None, "failed", "<b>no</b>"),
            trial(4, None, "failed", "longer than what was left of the budget"),
        ),
        importance={"train.learning_rate": 0.8, "train.optimizer": 0.2},
        best=1,
        ended="4 trials",
    )  # fmt: skip


def test_the_page_tells_the_best_what_mattered_and_every_trial(tuned: Tuned) -> None:
    page = html(tuned)
    assert "validation loss of 2.9000" in page
    assert page.count('data-plot="axis"') == 4 and 'data-plot="bars"' in page
    assert "80" in page and "&lt;b&gt;no&lt;/b&gt;" in page and "<b>no</b>" not in page
    assert page.count('class="chosen"') >= 2 and "结束原因：已满 4 次试验" in page
    assert "超出剩余预算" in page


def test_the_terminal_has_the_best_first_and_what_it_cost(tuned: Tuned) -> None:
    lines = text(tuned).splitlines()
    assert lines[1].split()[:2] == ["1", "2.9000"]
    assert "what mattered: train.learning_rate 80" in text(tuned)
    assert lines[-1] == "ended by: 4 trials"


def test_a_search_without_a_trial_still_has_a_page(tuned: Tuned) -> None:
    nothing = Tuned(
        name="x", axes=tuned.axes, trials=(trial(0, None, "failed"),), importance={}, best=None,
        ended="1 trials",
    )  # fmt: skip
    assert "No trial came through." in html(nothing)
    assert "too few trials" in text(nothing)


def test_a_sweep_s_page_marks_its_suggestion(tmp_path: Path) -> None:
    found = Swept(
        name="x", rates=(1e-4, 1e-3, 1e-2), losses=(5.0, 3.0, 8.0), smoothed=(5.0, 3.5, 6.0),
        suggested=2.5e-4,
        why="the smoothed loss is lowest, 3.5, at 0.001; a 4th of it leaves room for a whole "
        "training",
    )  # fmt: skip
    page = swept_html(found)
    assert 'data-plot="sweep"' in page and found.why in page and 'class="chosen"' in page
    assert "平滑后的损失在 0.001 处最低，为 3.5；取其 1/4" in page
    assert write(found, tmp_path).read_text() == page
