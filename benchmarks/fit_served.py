"""Fit the constants of serving to published servers, and judge them on what was left out.

    python benchmarks/fit_served.py FILE.csv [--cross machine|model|engine] [--every N]

As benchmarks/fit.py, on both the time to the first token and between tokens of each row. `--cross`
leaves out one source at a time, and of the one that has most rows one machine, model or engine at a
time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import served
from cells import Row, number
from rows import read_rows

from narrows.plan.fleet import constants
from narrows.spec.errors import BadInput

# What each constant is expected to be, and by which factor (log) it may differ.
OF_ENGINE = {
    "request": (0.02, 0.7),
    "token": (2e-6, 0.7),
    "step": (5e-4, 0.7),
    "block": (1e-5, 0.7),
    "sequence": (1e-5, 0.7),
    "prompt": (1.0, 0.15),
    "held_back": (4.0, 0.7),
    "launch": (3e-4, 1.0),
    "gathered": (1e-2, 1.5),
    "bunched": (1.0, 0.5),
}
PRIORS: dict[str, tuple[float, float]] = {
    "MEMORY": (0.8, 0.08), "CACHE": (0.6, 0.3), "EXPERTS": (0.85, 0.05), "MATMUL": (1.0, 0.1),
    "GROUPED": (0.5, 0.3), "EIGHT": (1.0, 0.1), "FOUR": (0.6, 0.15), "SCORES": (0.6, 0.1),
    "PASSES": (8.0, 0.4), "BLOCK": (2e-5, 0.5), "ROUTING": (2e-5, 0.7), "LATENT": (1e-5, 0.7),
    "EAGER": (6e-4, 0.5), "STEP": (1e-3, 0.7), "SEQUENCE": (5e-6, 1.0), "REDUCE": (1e-5, 0.5),
    "REDUCE_RANK": (3e-7, 1.0), "REDUCE_TWICE": (8e-6, 0.5), "JOIN": (1e-3, 0.5),
    "HANDED": (0.1, 0.7), "NARROWED": (1e-5, 0.5), "NARROWED_EXPERTS": (3e-5, 0.5),
    "LAUNCHED": (0.5, 0.7), "LAUNCHED_LATENT": (1.0, 0.7), "DRAWS": (0.9, 0.1),
    **{f"{engine}.{name}": prior for name, prior in OF_ENGINE.items()
       for engine in ("vllm", "trtllm", "sglang")},
}  # fmt: skip
# Errors (in logarithms) that count half of the most, and what a prior's width counts.
SIGMA, PRIOR = 0.15, 0.25
STRIDE, ROUNDS, ENOUGH = 0.12, 12, 1.0


class Case(NamedTuple):
    """A row, what it asks and the logarithms of what was measured; NaN where it was not."""

    row: Row
    question: served.Question
    measured: np.ndarray
    group: str


def main() -> None:
    """Fit, or cross-validate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cross", choices=["machine", "model", "engine"])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th row only")
    chosen = parser.parse_args()
    cases = distinct(read_rows(chosen.file), chosen.cross or "machine")
    cases = cases[:: chosen.every]
    if chosen.cross:
        print(json.dumps(cross(cases)))
        return
    values = fit(cases)
    apply(values)
    errors = log_errors(cases)
    for name, found in summary(errors).items():
        print(name, found)
    print(json.dumps({name: float(f"{np.exp(value):.3g}")
                      for name, value in zip(PRIORS, values, strict=True)}))  # fmt: skip


def distinct(rows: list[Row], by: str) -> list[Case]:
    """Rows that tell how many devices do what; each measurement once, however often printed."""
    found: dict[tuple[str, ...], Case] = {}
    for row in rows:
        silent = "mode=disagg" in row["notes"] and "workers= " in row["notes"]
        key = tuple(row[name] for name in ("accelerator", "quant", "prompt_len", "gen_len",
                                           "ttft_ms", "tpot_ms"))  # fmt: skip
        if key in found or silent:
            continue
        try:
            question = served.asked(row)
        except BadInput:
            continue
        tpot, ttft = number(row, "tpot_ms"), number(row, "ttft_ms")
        if tpot and served.impossible(question, tpot / 1e3):
            tpot = None
        measured = np.log([ttft / 1e3 if ttft else np.nan, tpot / 1e3 if tpot else np.nan])
        found[key] = Case(row, question, measured, group(row, by))
    return list(found.values())


def group(row: Row, by: str) -> str:
    """Of what is left out together: small sources are whole."""
    name = row["source"].split("/")[0].split(" ")[0]
    if not row["notes"].startswith("mode="):
        return name
    column = {"machine": row["accelerator"], "engine": row["engine"].split(" ")[0],
              "model": row["model"].rpartition("/")[2]}[by]  # fmt: skip
    return f"{name} {column}"


def apply(values: np.ndarray) -> None:
    """Make the cost model use these values."""
    for name, value in zip(PRIORS, np.exp(values), strict=True):
        engine, _, field = name.partition(".")
        if field:
            changed = constants.ENGINES[engine]._replace(**{field: float(value)})
            constants.ENGINES[engine] = changed
        else:
            setattr(constants, f"SERVING_{name}", float(value))


def known() -> np.ndarray:
    """The logarithms of what the cost model uses."""
    found = []
    for name in PRIORS:
        engine, _, field = name.partition(".")
        constant = f"SERVING_{name}"
        found.append(
            getattr(constants.ENGINES[engine], field) if field else getattr(constants, constant)
        )
    return np.log(found)


def log_errors(cases: list[Case]) -> np.ndarray:
    """log(predicted / measured) of the first token and of each more; NaN where not measured."""
    found = []
    for case in cases:
        answer = case.question.answer()
        found.append(np.log([answer.first_token, answer.per_token]) - case.measured)
    return np.array(found)


def fit(cases: list[Case], start: np.ndarray | None = None) -> np.ndarray:
    """The constants' logarithms, from `start`, else from what they are.

    A row counts at most 1, however far off it is: a server whose options made its first tokens wait
    must not move what is said of all others (Geman & McClure, 1987).
    """
    centre = np.log([expected for expected, _ in PRIORS.values()])
    width = np.array([wide for _, wide in PRIORS.values()])

    def loss(values: np.ndarray) -> float:
        apply(values)
        errors = np.nan_to_num(log_errors(cases)).ravel() / SIGMA
        strange = (values - centre) / width
        return float((errors**2 / (1.0 + errors**2)).sum() + PRIOR * (strange**2).sum())

    return searched(loss, known() if start is None else start)


def searched(loss: Callable[[np.ndarray], float], found: np.ndarray) -> np.ndarray:
    """The vector of a low loss, one coordinate at a time: longer strides where one helped."""
    least, strides = loss(found), np.full(found.size, STRIDE)
    for _ in range(ROUNDS):
        before = least
        for i in range(found.size):
            for stride in (strides[i], -strides[i]):
                tried = found.copy()
                tried[i] += stride
                if (value := loss(tried)) < least:
                    least, found = value, tried
                    strides[i] *= 1.5
                    break
            else:
                strides[i] /= 2.0
        if before - least < ENOUGH:
            break
    return found


def cross(cases: list[Case]) -> dict[str, dict[str, float]]:
    """Fit without each group in turn, and judge on it."""
    errors, start = np.full((len(cases), 2), np.nan), fit(cases)
    for left_out in sorted({case.group for case in cases}):
        inside = np.array([case.group == left_out for case in cases])
        apply(fit([case for case in cases if case.group != left_out], start))
        errors[inside] = log_errors([case for case in cases if case.group == left_out])
        print(f"{left_out:44}{inside.sum():5}  {summary(errors[inside])}", flush=True)
    return summary(errors)


def summary(errors: np.ndarray) -> dict[str, dict[str, float]]:
    """Median, 90th percentile and bias of the relative errors."""
    found = {}
    for name, column in (("ttft", errors[:, 0]), ("tpot", errors[:, 1])):
        ratio = np.exp(column[~np.isnan(column)]) - 1.0
        if ratio.size:
            found[name] = {
                "median": round(float(np.median(np.abs(ratio))), 3),
                "p90": round(float(np.quantile(np.abs(ratio), 0.9)), 3),
                "bias": round(float(np.median(ratio)), 3), "figures": int(ratio.size),
            }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
