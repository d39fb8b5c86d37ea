from __future__ import annotations

from typing import Any

import pytest

from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.job import Job
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Machine

CASES: list[tuple[type[record.Record], Any, str, str | None]] = [
    (Job, {"nam": "x"}, "unknown key nam at the top", "did you mean name?"),
    (Job, {"name": "x", "train": {"stpes": 3}}, "unknown key stpes in [train]",
     "did you mean steps?"),
    (Job, {"name": "x", "steps": 3}, "unknown key steps at the top", "did you mean train.steps?"),
    (Job, {"name": "x", "data": {"corpus": "x", "zzz": 1}}, "unknown key zzz in [data]",
     "known keys in [data]: corpus, tokenizer, vocabulary, validation, longest, text_field, "
     "cleaning, workers"),
    (Job, {}, "name is missing", 'add name = "..."'),
    (Job, {"name": "x", "data": {}}, "data.corpus is missing", 'add corpus = "..." to [data]'),
    (Job, {"name": "x", "model": {"positions": {"base": 3}}}, "model.positions.type is missing",
     'add type = "learned" or "rotary" or "alibi" or "relative" to [model.positions]'),
    (Job, {"name": "x", "model": {"positions": {"type": "rotry"}}},
     "model.positions.type cannot be 'rotry'", 'did you mean "rotary"?'),
    (Job, {"name": "x", "model": {"kind": "zz"}}, "model.kind cannot be 'zz'",
     "use one of: gpt2, llama"),
    (Job, {"name": "x", "train": {"steps": "3"}},
     "train.steps should be a whole number, not a text", None),
    (Job, {"name": "x", "train": 5}, "train should be a table, not a whole number", None),
    (Job, {"name": "x", "model": {"positions": "rotary"}},
     "model.positions should be a table, not a text", None),
    (Job, 5, "the whole should be a table, not a whole number", None),
    (Job, {"name": "x", "budget": {"time": 5}}, "budget.time: 5 has no unit",
     'write it with its unit, such as "10 min"'),
    (Job, {"name": "x", "budget": {"time": "5 m"}}, 'budget.time: "5 m" has the unknown unit "m"',
     'write it as "10 min" (units: d, h, min, s, ms, µs, ns)'),
    (Ledger, {"rows": [{"operatin": 1}]}, "unknown key operatin in [rows[0]]",
     "did you mean operation?"),
    (Machine, {"processor": {"caches": {"L1": 3}}}, "processor.caches[...]: 3 has no unit",
     'write it with its unit, such as "24 GiB"'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "data", "what", "hint"), CASES, ids=[case[2] for case in CASES])
def test_names_the_place_and_the_likely_intent(
    kind: type[record.Record], data: Any, what: str, hint: str | None
) -> None:
    with pytest.raises(BadInput) as caught:
        record.from_builtins(kind, data, source="job.toml")
    assert caught.value.what == f"job.toml: {what}"
    assert (caught.value.hint or None) == hint
