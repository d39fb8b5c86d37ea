"""Published measurements beside what the cost model says of them.

    python benchmarks/published.py FILE.csv [--memory | --infer] [--rows]

Each row is predicted from its own facts alone (see rows.py). Prints the errors by source and
machine, worst rows with --rows, and as the last line their median, 90th percentile and bias as
JSON. A row that cannot be predicted is named, and counts as an error of 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import served
from cells import Row, number
from rows import asked, measured_seconds, read_rows

from narrows.plan.fleet.memory import memory
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.time import step
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec

_COLUMNS_TOLD = {
    "micro_batch": "a micro-batch", "seq_len": "tokens", "prompt_len": "prompt tokens",
    "batch_or_concurrency": "at a time",
}  # fmt: skip


class Verdict(NamedTuple):
    """A row's relative error, or why there is none."""

    row: Row
    error: float | None
    said: str


def main() -> None:
    """Judge the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of step time")
    parser.add_argument("--infer", action="store_true", help="first token and tokens of serving")
    parser.add_argument("--rows", action="store_true", help="print every row")
    chosen = parser.parse_args()
    judge = memory_verdict if chosen.memory else time_verdict
    rows = read_rows(chosen.file)
    if chosen.infer:
        verdicts = [verdict for row in rows for verdict in serving_verdicts(row)]
    else:
        verdicts = [v for row in rows if (v := judge(row)) is not None]
    for title, key in (("source", _source), ("machine", _machine), ("kind", _kind)):
        _print_groups(title, verdicts, key)
    for verdict in verdicts:
        if verdict.error is None or chosen.rows:
            error = "unpredicted" if verdict.error is None else f"{verdict.error:+.1%}"
            print(f"{error:>12}  {_name(verdict.row)}  {verdict.said}")
    print(json.dumps(summary(verdicts)))


def time_verdict(row: Row) -> Verdict | None:
    """The error of the step's seconds; None where the row has no measured time."""
    try:
        question = asked(row)
        measured = measured_seconds(row, question)
        if measured is None:
            return None
        seconds = float(
            step(question.work, Spreads.of([question.spread]), question.fleet).seconds[0]
        )
    except BadInput as refusal:
        return Verdict(row, None, refusal.what)
    except (ArithmeticError, LookupError, ValueError) as failure:
        # One row that makes no sense must not hide what is said of all others.
        return Verdict(row, None, f"cannot be read: {failure}")
    told = _told(row, question.model)
    return Verdict(told, seconds / measured - 1.0, f"{seconds:.3f} s for {measured:.3f} s")


def memory_verdict(row: Row) -> Verdict | None:
    """The error of a device's peak bytes; None where the row has no measured peak."""
    measured = number(row, "peak_memory_GB")
    if measured is None:
        return None
    try:
        question = asked(row)
        held = memory(question.work, Spreads.of([question.spread]))
        peak = float(held.peak[0])
        if row.get("kind") in ("finetune", "inference"):
            # Such tables print what torch's allocator held, the runtime's own memory left out.
            peak -= float(held.runtime[0])
            if question.spread.sharding == "parameters" and question.spread.data > 1:
                # Each rank loads the whole before it keeps its share.
                peak = max(peak, 2.0 * question.model.parameters + float(held.weights[0]))
    except BadInput as refusal:
        return Verdict(row, None, refusal.what)
    unit = 2.0**30 if row.get("unit_printed", "") in ("GiB", "MiB") else 1e9
    return Verdict(row, peak / (measured * unit) - 1.0, f"{peak / 1e9:.1f} GB for {measured} GB")


def serving_verdicts(row: Row) -> list[Verdict]:
    """The errors of the time to the first token and of the time between tokens."""
    measured = {name: number(row, f"{name}_ms") for name in ("ttft", "tpot")}
    present = {name: value for name, value in measured.items() if value}
    try:
        question = served.asked(row)
        answer = question.answer()
    except BadInput as refusal:
        return [Verdict(row, None, refusal.what) for _ in present]
    found = {"ttft": answer.first_token * 1e3, "tpot": answer.per_token * 1e3}
    verdicts = []
    for name, value in present.items():
        said = f"{name} {found[name]:.1f} ms for {value:.1f} ms"
        wrong = served.impossible(question, value / 1e3) if name == "tpot" else None
        said += f" (cannot be right: {wrong})" if wrong else ""
        told = {**_told(row, question.work.spec), "precision": name}
        verdicts.append(Verdict(told, found[name] / value - 1.0, said))
    return verdicts


def summary(verdicts: list[Verdict]) -> dict[str, object]:
    """The last line."""
    errors = np.array([1.0 if v.error is None else v.error for v in verdicts])
    if not errors.size:
        sys.exit("error: no row has a measurement of that kind")
    return {
        "median": round(float(np.median(np.abs(errors))), 4),
        "p90": round(float(np.quantile(np.abs(errors), 0.9)), 4),
        "bias": round(float(np.median(errors)), 4),
        "rows": len(verdicts),
        "unpredicted": sum(v.error is None for v in verdicts),
    }


def _print_groups(title: str, verdicts: list[Verdict], key: object) -> None:
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[key(verdict.row)].append(verdict)  # type: ignore[operator]
    print(f"{title:44}{'rows':>6}{'median':>9}{'p90':>9}{'bias':>9}")
    for name, members in sorted(groups.items()):
        line = summary(members)
        print(f"{name:44}{len(members):6}{line['median']:9.1%}{line['p90']:9.1%}"
              f"{line['bias']:+9.1%}")  # fmt: skip
    print()


def _told(row: Row, model: ModelSpec) -> Row:
    """With whether the model has experts, which the row need not say."""
    return {**row, "ffn_kind": "moe" if model.experts else "dense"}


def _source(row: Row) -> str:
    return " ".join(row["source"].split()[:2])[:43]


def _machine(row: Row) -> str:
    return row["accelerator"]


def _kind(row: Row) -> str:
    experts = "experts" if "moe" in row.get("ffn_kind", "") else "dense"
    apart = ", prompts computed apart" if "mode=disagg" in row["notes"] else ""
    return f"{experts}, {row.get('precision', 'unpredicted')}{apart}"


def _name(row: Row) -> str:
    layout = " ".join(f"{c}{row[c]}" for c in ("tp", "pp", "dp", "cp", "ep") if row.get(c))
    told = [f"{row['model']} on {row['n_devices']} x {row['accelerator']}", layout]
    for column, unit in _COLUMNS_TOLD.items():
        if row.get(column):
            told.append(f"{row[column]} {unit}")
    return ", ".join([*told, row.get("precision") or row.get("quant") or ""])


if __name__ == "__main__":
    main()
