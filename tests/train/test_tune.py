"""A search that is killed goes on; what it ends with is the best of what it tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.optimizer import Optimizer
from narrows.spec.plan import Plan
from narrows.spec.record import load
from narrows.spec.tuning import Choice, Range, Tuned, Value
from narrows.train.step import Trainer
from narrows.train.sweep import reading, sweep, swept
from narrows.train.tune import Limits, Search, tune

from .conftest import layout, tiny_machine, with_text

AXES = (
    Range(key="rate", low=1e-4, high=1e-1, log=True),
    Range(key="layers", low=1, high=2),
    Choice(key="kind", values=("plain", "calm")),
)


def silent(text: str) -> None:
    """Nothing to say."""


def search(dataset: Dataset, **changes: Any) -> Search:
    def planned(values: dict[str, Value]) -> Plan:
        if values["kind"] == "calm" and values["layers"] == 2:
            raise BadInput("too calm for two layers")
        found = with_text(dataset, steps=6, optimizer=Optimizer(
            learning_rate=float(values["rate"])))  # fmt: skip
        model = msgspec.structs.replace(found.model, layers=int(values["layers"]))
        return msgspec.structs.replace(found, model=model, **changes)

    return Search("tiny", AXES, planned)


def test_a_search_ends_with_the_best_of_its_trials(dataset: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    found = tune(search(dataset), Limits(12), tmp_path, tiny_machine(), said.append)
    assert len(found.trials) == 12 and found.ended == "12 trials"
    done = [each for each in found.trials if each.outcome == "done"]
    losses = [each.loss for each in done if each.loss is not None]
    assert found.winner is not None and found.winner.loss == min(losses)
    assert all(each.steps == 6 and each.seconds > 0 and each.joules > 0 for each in done)
    assert set(found.importance) == {"rate", "layers", "kind"}
    assert sum(found.importance.values()) == pytest.approx(1.0)
    refused = [each for each in found.trials if each.outcome == "failed"]
    assert all(each.message == "too calm for two layers" for each in refused)
    assert said.count("  too calm for two layers") == len(refused) > 0
    assert load(Tuned, tmp_path / "tuned.json") == found
    assert all((tmp_path / each.folder / "plan.toml").exists() for each in done)


def test_of_few_combinations_each_is_tried_once(dataset: Dataset, tmp_path: Path) -> None:
    first = search(dataset)
    few = first._replace(
        axes=AXES[1:], planned=lambda values: first.planned({"rate": 1e-2, **values})
    )
    found = tune(few, Limits(2), tmp_path, tiny_machine(), silent)
    assert len(found.trials) == 2
    # A search that goes on knows what it tried.
    found = tune(few, Limits(50), tmp_path, tiny_machine(), silent)
    tried = sorted((each.values["layers"], each.values["kind"]) for each in found.trials)
    assert tried == [(1, "calm"), (1, "plain"), (2, "calm"), (2, "plain")]
    assert found.ended == "every combination of values is tried"


def test_what_a_budget_did_not_hold_a_larger_one_tries(dataset: Dataset, tmp_path: Path) -> None:
    first = search(dataset)
    few = first._replace(
        axes=AXES[2:], planned=lambda values: first.planned({"rate": 1e-2, "layers": 1, **values})
    )
    with pytest.raises(RunFailed, match="none of 1 trials"):
        tune(few, Limits(50, seconds=2.0), tmp_path, tiny_machine(), silent)
    found = tune(few, Limits(50), tmp_path, tiny_machine(), silent)
    done = sorted(str(each.values["kind"]) for each in found.trials if each.outcome == "done")
    assert done == ["calm", "plain"]


class Killed(BaseException):
    """As if the process had ended."""


def test_killed_in_a_trial_a_search_goes_on_with_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Trainer.step, []

    def mortal(self: Trainer, number: int, batches: Any) -> Any:
        steps.append(number)
        if len(steps) == 13:
            raise Killed
        return step(self, number, batches)

    monkeypatch.setattr(Trainer, "step", mortal)
    plain = search(dataset)._replace(axes=AXES[:1])
    once = plain._replace(
        planned=lambda values: plain.planned({**values, "kind": "plain", "layers": 1})
    )
    with pytest.raises(Killed):
        tune(once, Limits(3), tmp_path, tiny_machine(), silent)
    journal = tmp_path / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"half": ')
    (tmp_path / "journal.jsonl.lock").write_text("")
    said: list[str] = []
    found = tune(once, Limits(3), tmp_path, tiny_machine(), said.append)
    assert said[0] == "trial 1 goes on"
    # Profiled steps after each run's end count too; a resumed trial begins at its checkpoint.
    assert [each.outcome for each in found.trials] == ["done"] * 3
    assert steps[12:14] == [4, 3]
    again = tune(once, Limits(3), tmp_path, tiny_machine(), silent)
    assert again == found


def test_a_budget_that_is_over_ends_the_search(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="none of 1 trials") as caught:
        tune(search(dataset), Limits(50, seconds=2.0), tmp_path, tiny_machine(), silent)
    assert "longer than what was left of the budget" in caught.value.causes


def test_another_search_in_the_folder_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    first = search(dataset)
    tune(first._replace(axes=AXES), Limits(1), tmp_path, tiny_machine(), silent)
    other = first._replace(axes=(Range(key="rate", low=1e-4, high=1e-2, log=True),))
    with pytest.raises(BadInput, match="holds another search"):
        tune(other, Limits(1), tmp_path, tiny_machine(), silent)


def test_a_trial_that_others_left_behind_is_given_up(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.01] * 4 + [1e-6])
    first = search(dataset)

    def planned(values: dict[str, Value]) -> Plan:
        return first.planned({"rate": next(rates), "layers": 1, "kind": "plain"})

    once = first._replace(axes=(Range(key="any", low=0.0, high=1.0),), planned=planned)
    found = tune(once, Limits(5), tmp_path, tiny_machine(), silent)
    assert [each.outcome for each in found.trials] == ["done"] * 4 + ["pruned"]
    assert found.trials[4].steps == 5


def test_a_sweep_suggests_a_rate_under_the_lowest_loss() -> None:
    rates = [1e-4 * 1.1**step for step in range(100)]
    losses = [5.0 - 0.03 * step if step < 70 else 2.9 + 0.2 * (step - 70) for step in range(100)]
    found = reading("x", rates, losses)
    assert rates[66] / 4.2 < found.suggested < rates[74] / 3.8
    assert "lowest" in found.why and len(found.smoothed) == 100


def test_a_sweep_in_which_nothing_was_learned_suggests_nothing() -> None:
    with pytest.raises(RunFailed, match="fell at no rate"):
        reading("x", [1e-3] * 20, [3.0 + step for step in range(20)])


def test_a_sweep_is_one_run_that_goes_on_where_it_stopped(dataset: Dataset, tmp_path: Path) -> None:
    plan = swept(with_text(dataset, layout=layout()), 40)
    found = sweep(plan, tmp_path / "run", machine=tiny_machine(), resume=False, talk=silent)
    assert found.rates[0] == pytest.approx(3e-3 / 30) and found.rates == tuple(sorted(found.rates))
    assert found.rates[-1] == pytest.approx(3e-3 * 30)
    assert 3e-3 / 30 < found.suggested < 3e-3 * 30
    again = sweep(plan, tmp_path / "run", machine=tiny_machine(), resume=True, talk=silent)
    assert again == found
