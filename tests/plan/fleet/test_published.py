"""Steps that others measured and published (published.csv), predicted from the rows' own facts.

Rows are every n-th of those of each source, machine and precision, whatever their error. Constants
were fitted to such runs: this holds what docs/accuracy.md says, and proves nothing beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.time import step

TABLE = Path(__file__).with_name("published.csv")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
# Transformers under DeepSpeed's ZeRO, and XLA on GPUs in 2023 (docs/accuracy.md).
UNLIKE = ("chenyaofo", "NVIDIA/JAX-Toolbox")
ELSEWHERE = BENCHMARKS / "elsewhere.csv"


class Judged(NamedTuple):
    """A row and the relative error of its step; `usual`: dense, in 16 bits."""

    row: dict[str, str]
    usual: bool
    error: float


@pytest.fixture(scope="module")
def reader() -> Iterator[ModuleType]:
    """benchmarks/rows.py, which reads a row as a model, a layout and a fleet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import rows

        yield rows


@pytest.fixture(scope="module")
def judged(reader: Any) -> list[Judged]:
    return judge(reader, TABLE)


@pytest.fixture(scope="module")
def elsewhere(reader: Any) -> list[Judged]:
    return judge(reader, ELSEWHERE)


def judge(reader: Any, table: Path) -> list[Judged]:
    """All rows: one that cannot be predicted, or has no measured step, fails here."""
    found = []
    for row in reader.read_rows(table):
        asked = reader.asked(row)
        measured = reader.measured_seconds(row, asked)
        assert measured, row["model"]
        taken = step(asked.work, Spreads.of([asked.spread]), asked.fleet)
        usual = row["precision"] in ("bf16", "fp16") and asked.model.experts is None
        found.append(Judged(row, usual, float(taken.seconds[0]) / measured - 1.0))
    return found


def test_the_table_has_many_sources_and_machines(judged: list[Judged]) -> None:
    assert len(judged) >= 40
    usual = [each.row for each in judged if each.usual]
    assert len(usual) >= 35 and len(judged) - len(usual) >= 5
    assert len({row["source"].split()[0] for row in usual}) >= 3
    assert len({row["accelerator"] for row in usual}) >= 6
    assert {row["precision"] for row in usual} == {"bf16", "fp16"}
    assert min(int(row["n_devices"]) for row in usual) <= 8
    assert max(int(row["n_devices"]) for row in usual) >= 1024


def test_dense_steps_in_16_bits_are_predicted_closely(judged: list[Judged]) -> None:
    errors = np.array([each.error for each in judged if each.usual])
    assert np.median(np.abs(errors)) <= 0.05
    assert np.quantile(np.abs(errors), 0.9) <= 0.15
    # And are as often too long as too short.
    assert abs(np.median(errors)) <= 0.06


def test_other_publications_are_predicted_as_closely(elsewhere: list[Judged]) -> None:
    assert len({each.row["source"].split(",")[0] for each in elsewhere}) >= 15
    for usual, middle, most in ((True, 0.05, 0.15), (False, 0.1, 0.3)):
        errors = np.array([
            each.error for each in elsewhere
            if each.usual == usual and not each.row["source"].startswith(UNLIKE)
        ])  # fmt: skip
        assert errors.size >= 35
        assert np.median(np.abs(errors)) <= middle
        assert np.quantile(np.abs(errors), 0.9) <= most
        assert abs(np.median(errors)) <= 0.06


def test_stacks_unlike_the_others_are_taken_for_quicker_ones(elsewhere: list[Judged]) -> None:
    errors = np.array([e.error for e in elsewhere if e.row["source"].startswith(UNLIKE)])
    assert errors.size >= 12 and np.max(np.abs(errors)) < 0.55
    assert -0.4 < np.median(errors) < -0.2


def test_experts_and_narrow_formats_are_predicted_within_a_half(judged: list[Judged]) -> None:
    errors = np.array([each.error for each in judged if not each.usual])
    assert np.median(np.abs(errors)) <= 0.35
    assert np.max(np.abs(errors)) <= 0.5


@pytest.mark.parametrize(
    ("told", "precision", "accelerator"),
    [
        ({"accelerator": "NVIDIA A100-SXM4-80GB NVLink", "precision": "amp_bf16"}, "bf16", "A100"),
        ({"accelerator": "v5e", "precision": "BF16"}, "bf16", "TPU v5e"),
        ({"accelerator": "H800", "precision": "MXFP8"}, "fp8", "H800"),
        ({"accelerator": "GeForce RTX 4090 24GB", "precision": "16-mixed"}, "fp16", "4090"),
    ],
)
def test_rows_are_read_however_they_are_spelt(
    reader: Any, tmp_path: Path, told: dict[str, str], precision: str, accelerator: str
) -> None:
    """Columns may be missing, cells empty, and names longer than the catalogue's."""
    row = {"model": "Llama-2-7B", "n_devices": "8", "seq_len": "4096", "fsdp": "Yes", **told}
    table = tmp_path / "rows.csv"
    table.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n", encoding="utf-8")
    (read,) = reader.read_rows(table)
    asked = reader.asked(read)
    assert asked.spread.precision == precision and accelerator in asked.fleet.accelerator
    assert asked.spread.sharding == "parameters" and asked.spread.data == 8
    assert step(asked.work, Spreads.of([asked.spread]), asked.fleet).seconds[0] > 0.0


ODD: tuple[dict[str, str], ...] = (
    {"accelerator": "DGX H100"}, {"accelerator": "8x H100 (80GB)"}, {"accelerator": "Ascend 910B"},
    {"accelerator": ""}, {"precision": "nvfp4"}, {"precision": "fp8", "accelerator": "V100"},
    {"precision": "fp32", "accelerator": "TPU v4"}, {"n_devices": ""}, {"n_devices": "1,024"},
    {"seq_len": "4k"}, {"seq_len": ""}, {"micro_batch": "0.5"}, {"global_batch": "0"},
    {"pp": "64"}, {"tp": "3", "dp": "5"}, {"n_heads": "31"}, {"n_kv_heads": "3"},
    {"recompute": "every other block"}, {"model": "Llama-2-seventh"}, {"fsdp": "HYBRID_SHARD"},
    {"n_layers": "", "d_model": "", "model": "Foo 13B"}, {"zero_stage": "zero-3", "fsdp": ""},
)  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_every_row_is_predicted(reader: Any, tmp_path: Path, odd: dict[str, str]) -> None:
    row = {"model": "Llama-2-7B", "n_devices": "8", "seq_len": "4096", "accelerator": "H100",
           "n_layers": "32", "d_model": "4096", "tokens_per_s_per_device": "9000",
           **odd}  # fmt: skip
    table = tmp_path / "rows.csv"
    cells = (f'"{cell}"' for cell in row.values())
    table.write_text(",".join(row) + "\n" + ",".join(cells) + "\n", encoding="utf-8")
    (read,) = reader.read_rows(table)
    asked = reader.asked(read)
    seconds = step(asked.work, Spreads.of([asked.spread]), asked.fleet).seconds[0]
    assert 0.0 < seconds < np.inf and reader.measured_seconds(read, asked) > 0.0


def test_what_a_row_leaves_open_is_what_one_would_choose(reader: Any) -> None:
    (row,) = (r for r in reader.read_rows(ELSEWHERE) if r["model"] == "GPT-7.5B")
    chosen = reader.asked(row).spread
    assert chosen.micro_batch > 1 and chosen.recompute == "full"
    told = reader.asked({**row, "micro_batch": "1", "pp": "2", "n_devices": "256"}).spread
    assert told.micro_batch == 1 and told.interleave > 1
    deep = {**row, "pp": "2", "n_devices": "256", "notes": "DeepSpeed"}
    assert reader.asked(deep).spread.interleave == 1 and reader.asked(deep).spread.waits_for_host
    # DeepSpeed's pipeline takes no sharded weights: those rows are of its ZeRO alone.
    assert not reader.asked({**deep, "pp": "1", "zero_stage": "3"}).spread.waits_for_host


def test_no_measurement_is_read_before_the_prediction(reader: Any) -> None:
    """The error cannot be small because the answer was looked up: outcomes are blanked first."""
    outcomes = ("step_time_s", "tokens_per_s_per_device", "model_tflops_per_device",
                "MFU_percent", "peak_memory_GB", "consistency")  # fmt: skip
    for row in reader.read_rows(TABLE):
        assert reader.asked({**row, **dict.fromkeys(outcomes, "")}) == reader.asked(row)
