from __future__ import annotations

import pytest

from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.job import Budget, Job, budget
from narrows.spec.units import Dollars, Joules, Seconds, Tokens


def test_ten_lines_are_a_job() -> None:
    text = """
    name = "plays"
    [data]
    corpus = "shakespeare"
    [model]
    layers = 6
    positions = { type = "rotary", base = 500000.0 }
    [budget]
    time = "5 min"
    """
    job = record.loads(Job, text)
    assert job.data is not None and job.data.corpus == "shakespeare"
    assert job.model.layers == 6 and job.model.width is None
    assert job.budget == Budget(time=Seconds(300))


def test_a_budget_is_known_by_its_unit() -> None:
    assert budget("5min", "0.4 kWh", "$20", "20M tokens") == Budget(
        time=Seconds(300), energy=Joules(1.44e6), money=Dollars(20), tokens=Tokens(20e6)
    )


@pytest.mark.parametrize("texts", [["5"], ["soon"], ["5min", "1h"], ["-5min"], ["0 s"]])
def test_refuses_budgets_that_bound_nothing(texts: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        budget(*texts)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", "../outside"),
        ("name", "a/b"),
        ("data.corpus", ""),
        ("data.validation", "0.0"),
        ("data.validation", "1.5"),
        ("data.workers", "0"),
        ("data.vocabulary", "-1"),
        ("model.layers", "0"),
        ("model.dropout", "1.0"),
        ("train.steps", "0"),
        ("train.learning_rate", "-0.1"),
        ("train.clip", "-1.0"),
        ("train.ema", "1.0"),
        ("train.shrink", "0.0"),
        ("train.optimizer", "{type = 'adamw', beta2 = 1.0}"),
        ("train.optimizer", "{type = 'muon', iterations = 0}"),
        ("train.optimizer", "{type = 'sgd', momentum = 0.0, nesterov = true}"),
        ("train.objective", "{type = 'classify', labels = ['a', 'a', 'b']}"),
        ("layout.threads", "0"),
        ("budget.time", "-3 s"),
        ("budget.time", "1e300 d"),
    ],
)
def test_refuses_values_out_of_range_and_names_them(key: str, value: str) -> None:
    data = {"name": "x", "data": {"corpus": "shakespeare"}}
    with pytest.raises(BadInput) as caught:
        record.from_builtins(Job, record.with_override(data, f"{key}={value}"))
    assert key.rpartition(".")[2] in caught.value.what
    assert caught.value.hint
