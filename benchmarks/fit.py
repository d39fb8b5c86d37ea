"""Fit the cost model's constants to published training runs, and judge them on what was left out.

    python benchmarks/fit.py FILE.csv [FILE.csv ...] [--cross [--by publication|machine|series]]

Levenberg and Marquardt on the logarithms of the constants, each held near what physics expects by a
prior, on errors of the logarithm of the step's seconds. A row that is far off counts for little
(Geman and McClure 1987), and a publication's rows for less the more they are. `--cross` leaves out
one whole publication at a time, or all rows of one machine, or one publication's on one machine,
and prints the errors on it: those are the figures to quote. The last line is JSON: the constants,
or the cross-validated errors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from cells import Row
from rows import Asked, asked, measured_seconds, read_rows

from narrows.plan.fleet import constants
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.time import step
from narrows.spec.errors import BadInput

# What each constant is expected to be, and by which factor (log) it may differ.
PRIORS: dict[str, tuple[float, float]] = {
    "PASSES_WIDTH": (100.0, 0.3), "PASSES_FEED_FORWARD": (8.0, 0.5), "FUSED": (0.5, 0.3),
    "COMPILED": (0.5, 0.2), "SCORE_PASSES": (14.0, 0.3), "MISALIGNED": (12.0, 0.6),
    "HEAD_WIDTH_POWER": (0.2, 0.5), "LINK": (1.07, 0.1), "NETWORK": (0.7, 0.15),
    "OVERLAP": (0.85, 0.08), "WAITING": (0.02, 0.4), "DEVIATION": (0.012, 0.4),
    "TENSOR_OVERLAP": (0.5, 0.2), "HOPS_SHOWN": (0.4, 0.4), "OUTSIDE": (0.4, 0.3),
    "CONTENTION": (0.15, 0.5), "EXPOSED_REDUCTION": (0.5, 0.3), "HOST_BLOCK": (0.006, 1.0),
    "FOUR_BITS": (1.55, 0.15), "EXPERT_SHOWN": (0.6, 0.3),
    "EXPERT_REACH": (0.75, 0.2), "PASSES_EXPERT": (10.0, 0.4),
}  # fmt: skip
REACH: dict[str, dict[str, tuple[float, float]]] = {
    "ampere": {
        "matmul": (0.80, 0.03), "half": (75.0, 0.4), "attention_forward": (0.58, 0.06),
        "biased": (0.7, 0.2),
    },
    "hopper": {
        "matmul": (0.74, 0.03), "half": (100.0, 0.5), "attention_forward": (0.40, 0.06),
        "biased": (0.7, 0.2), "plain": (0.9, 0.1),
    },
    "blackwell": {"matmul": (0.60, 0.05), "attention_forward": (0.42, 0.1), "narrow": (1.0, 0.2)},
    "blackwell-ultra": {"attention_forward": (0.5, 0.1)},
    "tpu": {"matmul": (0.85, 0.08), "attention_forward": (0.5, 0.2)},
    "tpu-v4": {"matmul": (0.85, 0.05)},
}  # fmt: skip
HOPPER_NARROW = ("hopper", "narrow", (1.0, 0.2))
BACKWARD = 0.83
SIGMA = 0.05
# Errors beyond this are taken for rows or stacks that the model does not know: of dense ones in 16
# bits, and of the others.
OUTLYING = (0.15, 0.4)
# The rows of a publication of n count as n to the power 1 - VOTES.
VOTES = 0.4
# Weight of rows of experts and of formats below 16 bits, whose kernels change from month to month.
OTHERS = 0.3
STEPS = 25
MOVED = 1e-3


class Case(NamedTuple):
    """A row, what it asks, its layouts and the logarithm of what was measured."""

    row: Row
    question: Asked
    spreads: Spreads
    seconds: float


def main() -> None:
    """Fit, or cross-validate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="+")
    parser.add_argument("--cross", action="store_true")
    parser.add_argument("--by", choices=GROUPS, default="publication", help="what is left out")
    chosen = parser.parse_args()
    rows = [row for file in chosen.file for row in read_rows(file)]
    cases = [case for row in rows if (case := case_of(row)) is not None]
    if chosen.cross:
        print(json.dumps(cross(cases, GROUPS[chosen.by])))
        return
    names, values = fit(cases)
    apply(names, values)
    print_errors(cases)
    print(json.dumps({name: float(f"{np.exp(v):.4g}") for name, v in zip(names, values,
                                                                        strict=True)}))  # fmt: skip


def case_of(row: Row) -> Case | None:
    """None where nothing was measured or the row cannot be asked."""
    try:
        question = asked(row)
        measured = measured_seconds(row, question)
    except BadInput:
        return None
    if measured is None or "uncertain" in row["notes"]:
        return None
    return Case(row, question, Spreads.of([question.spread]), float(np.log(measured)))


def keys() -> list[str]:
    """Names of all constants, in the order of the vector."""
    return [*PRIORS, *(f"{a}.{n}" for a, each in REACH.items() for n in each), "hopper.narrow"]


def expected() -> tuple[np.ndarray, np.ndarray]:
    """The priors' logarithms and their widths."""
    pairs = [*PRIORS.values(), *(p for each in REACH.values() for p in each.values()),
             HOPPER_NARROW[2]]  # fmt: skip
    return np.log([p[0] for p in pairs]), np.array([p[1] for p in pairs])


_reaches: dict[str, dict[str, np.ndarray]] = {}


def apply(names: list[str], values: np.ndarray) -> None:
    """Make the cost model use these values; a row of them for each constant, for as many steps."""
    _reaches.clear()
    for name, value in zip(names, np.exp(values), strict=True):
        if "." in name:
            architecture, field = name.split(".")
            _reaches.setdefault(architecture, {})[field] = value
        else:
            setattr(constants, name, value)


def log_errors(cases: list[Case], often: int = 1) -> np.ndarray:
    """log(predicted / measured) of each case by each of the values applied, [cases, often]."""
    return np.stack([np.broadcast_to(_predicted(case) - case.seconds, often) for case in cases])


def _predicted(case: Case) -> np.ndarray:
    fleet = case.question.fleet
    keys = (fleet.kind, fleet.architecture.removesuffix("-ultra"), fleet.architecture)
    changes = {name: value for key in keys for name, value in _reaches.get(key, {}).items()}
    if "attention_forward" in changes:
        changes["attention_backward"] = BACKWARD * changes["attention_forward"]
    fleet = msgspec.structs.replace(fleet, reach=msgspec.structs.replace(fleet.reach, **changes))
    return np.log(step(case.question.work, case.spreads, fleet).seconds)


def fit(cases: list[Case], start: np.ndarray | None = None) -> tuple[list[str], np.ndarray]:
    """The constants' logarithms, from `start` where that is known."""
    names, (centre, width) = keys(), expected()
    importance = _importance(cases)[:, None]
    outlying = np.array([OUTLYING[0 if dense(case) else 1] for case in cases])[:, None]

    def residuals(columns: np.ndarray) -> np.ndarray:
        apply(names, columns)
        errors = log_errors(cases, columns.shape[1])
        weight = importance / np.sqrt(1.0 + (errors / outlying) ** 2)
        held = (columns - centre[:, None]) / width[:, None]
        return np.concatenate([errors * weight / SIGMA, held])

    def slopes(x: np.ndarray) -> np.ndarray:
        moved = np.hstack([np.zeros((x.size, 1)), MOVED * np.eye(x.size)])
        found = residuals(x[:, None] + moved)
        return (found[:, 1:] - found[:, :1]) / MOVED

    first = centre.copy() if start is None else start
    return names, minimize(lambda x: residuals(x[:, None])[:, 0], first, slopes)


def _importance(cases: list[Case]) -> np.ndarray:
    whose = [publication(case) for case in cases]
    found = np.array([whose.count(name) ** (-VOTES / 2.0) for name in whose])
    found /= np.sqrt((found**2).mean())
    return found * np.array([1.0 if dense(case) else OTHERS for case in cases])


def minimize(
    residuals: Callable[[np.ndarray], np.ndarray], x: np.ndarray,
    slopes: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """The vector of least squares of residuals, by Levenberg and Marquardt."""
    found, damping = residuals(x), 1.0
    for _ in range(STEPS):
        jacobian = slopes(x) if slopes else _one_by_one(residuals, x, found)
        for _ in range(6):
            normal = jacobian.T @ jacobian + damping * np.eye(x.size)
            change = np.clip(-np.linalg.solve(normal, jacobian.T @ found), -0.3, 0.3)
            tried = residuals(x + change)
            if (tried**2).sum() < (found**2).sum():
                gained = (found**2).sum() - (tried**2).sum()
                x, found, damping = x + change, tried, damping / 3
                if gained < 1e-2:
                    return x
                break
            damping *= 3
        else:
            break
    return x


def _one_by_one(
    residuals: Callable[[np.ndarray], np.ndarray], x: np.ndarray, found: np.ndarray
) -> np.ndarray:
    columns = []
    for i in range(x.size):
        moved = x.copy()
        moved[i] += MOVED
        columns.append((residuals(moved) - found) / MOVED)
    return np.stack(columns, axis=1)


def cross(cases: list[Case], group: Callable[[Case], str]) -> dict[str, object]:
    """Fit without each group in turn, from what is found with all, and judge on it."""
    groups = sorted({group(case) for case in cases})
    _, start = fit(cases)
    errors: list[np.ndarray] = []
    whole: list[bool] = []
    for left_out in groups:
        others = [case for case in cases if group(case) != left_out]
        judged = [case for case in cases if group(case) == left_out]
        apply(*fit(others, start))
        found = np.exp(log_errors(judged)[:, 0]) - 1.0
        errors.append(found)
        whole += [dense(case) for case in judged]
        print(f"{left_out:44}{len(judged):5}{_errors(found)}", flush=True)
    every = np.concatenate(errors)
    some = every[np.array(whole)]
    print(f"{'dense, 16 bits':44}{some.size:5}{_errors(some)}")
    return {
        "median": round(float(np.median(np.abs(every))), 4),
        "p90": round(float(np.quantile(np.abs(every), 0.9)), 4),
        "bias": round(float(np.median(every)), 4), "rows": int(every.size),
    }  # fmt: skip


def _errors(found: np.ndarray) -> str:
    size = np.abs(found)
    return f"{np.median(size):9.1%}{np.quantile(size, 0.9):9.1%}{np.median(found):+9.1%}"


def dense(case: Case) -> bool:
    """Whether every weight is used by every token, in 16 bits."""
    return case.row["precision"] in ("bf16", "fp16") and case.question.model.experts is None


def publication(case: Case) -> str:
    """The repository or the first author that the row is from."""
    return case.row["source"].removeprefix("from memory: ").split()[0].split("/")[-1].strip(",")


def machine(case: Case) -> str:
    """The accelerator by its name in the catalogue."""
    return case.question.fleet.accelerator


def series(case: Case) -> str:
    """One publication's measurements on one machine."""
    return f"{publication(case)} {case.row['accelerator']}"


GROUPS = {"publication": publication, "machine": machine, "series": series}


def print_errors(cases: list[Case]) -> None:
    """By source, and of dense 16-bit rows."""
    errors = np.exp(log_errors(cases)[:, 0]) - 1.0
    for name in sorted({series(case) for case in cases}):
        mine = np.array([e for e, case in zip(errors, cases, strict=True) if series(case) == name])
        print(f"{name:44}{mine.size:5}{_errors(mine)}")
    some = np.array([e for e, case in zip(errors, cases, strict=True) if dense(case)])
    print(f"dense, 16 bits: {some.size:20}     {_errors(some)}")
    print(
        f"all: median {np.median(np.abs(errors)):.1%}, p90 {np.quantile(np.abs(errors), 0.9):.1%}"
    )


if __name__ == "__main__":
    main()
