from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

TABLE = Path(__file__).with_name("served.csv")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


class Errors(NamedTuple):
    """Relative errors of the first token, where it was measured, and of the time between tokens."""

    first: np.ndarray[Any, Any]
    each: np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def served() -> Iterator[ModuleType]:
    """benchmarks/served.py, which reads a row as a model, a replica, a load and a fleet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import served

        yield served


@pytest.fixture(scope="module")
def rows(served: Any) -> list[dict[str, str]]:
    import rows

    return rows.read_rows(TABLE)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def errors(served: Any, rows: list[dict[str, str]]) -> Errors:
    """All rows: one that cannot be predicted fails here."""
    first, each = [], []
    for row in rows:
        answer = served.asked(row).answer()
        each.append(answer.per_token * 1e3 / float(row["tpot_ms"]) - 1.0)
        if row["ttft_ms"]:
            first.append(answer.first_token * 1e3 / float(row["ttft_ms"]) - 1.0)
    return Errors(np.array(first), np.array(each))


def test_the_table_has_many_models_machines_and_engines(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 30
    assert len({row["model"] for row in rows}) >= 9
    assert len({row["accelerator"] for row in rows}) >= 5
    assert {"vllm", "trtllm", "sglang", "gpt-fast"} <= {row["engine"].split()[0] for row in rows}
    assert {"fp4", "fp8", "bf16"} <= {row["quant"] for row in rows}


def test_tokens_are_predicted_closer_than_first_tokens(errors: Errors) -> None:
    assert np.median(np.abs(errors.each)) <= 0.17
    assert abs(np.median(errors.each)) <= 0.1
    assert np.median(np.abs(errors.first)) <= 0.38
    assert abs(np.median(errors.first)) <= 0.25


def test_no_measurement_is_read_before_the_prediction(
    served: Any, rows: list[dict[str, str]]
) -> None:
    for row in rows:
        blank = {**row, "ttft_ms": "", "tpot_ms": "", "source": ""}
        assert served.asked(blank) == served.asked(row)


def test_one_group_of_ranks_named_twice_is_counted_once(served: Any) -> None:
    told = {
        "model": "deepseek-ai/DeepSeek-R1", "accelerator": "h200_sxm", "engine": "trtllm",
        "quant": "fp8", "batch_or_concurrency": "8", "prompt_len": "1024", "gen_len": "1024",
        "source": "",
    }  # fmt: skip
    twice = {**told, "tp": "64", "notes": "mode=agg; pp=1 attn_dp=1 moe_tp=8 moe_ep=8"}
    once = {**told, "tp": "8", "notes": "mode=agg; pp=1 attn_dp=1 moe_tp=1 moe_ep=8"}
    assert served.asked(twice).replica == served.asked(once).replica
    both = {**told, "tp": "4", "notes": "mode=agg; pp=1 attn_dp= moe_tp=2 moe_ep=2"}
    assert served.asked(both).replica.tensor == 4


def test_a_row_against_physics_is_named(served: Any) -> None:
    row = {
        "model": "Llama-3-70B", "accelerator": "RTX 4090 24GB", "engine": "llama.cpp",
        "quant": "F16", "tp": "1", "batch_or_concurrency": "1", "prompt_len": "1024",
        "gen_len": "1024", "source": "", "notes": "",
    }  # fmt: skip
    question = served.asked(row)
    assert "memory moves" in str(served.impossible(question, 0.009))
    assert served.impossible(question, 0.3) is None
