"""Predicted beside measured step time across hosts that a slow network joins.

Emulates hosts of one core each (hosts.py), measures their link, and plans and trains a small model
of Shakespeare in each layout. Prints a table, and as the last line the errors as JSON; where
there can be no such hosts, why:

    python benchmarks/network.py [--hosts 2 4] [--rate 100mbit 1gbit 10gbit] [--layout DDP ...]

With --keep DIR plans and runs stay there, whose ledgers say in which operations a step went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from hosts import RATES, REAL_TIME, CannotEmulate, Finished, Hosts, hosts

from narrows.spec.home import narrows_home
from narrows.spec.plan import Plan
from narrows.spec.record import load

NARROWS = (sys.executable, "-W", "ignore", "-m", "narrows")
# What each does about the model; N is the number of hosts.
LAYOUTS = {
    "DDP": ("data=N", "sharding=none"),
    "FSDP": ("data=N", "sharding=parameters"),
    "TP": ("tensor=N",),
    "PP": ("pipeline=N",),
}
JOB = """\
name = "network"
[data]
corpus = "shakespeare"
tokenizer = "character"
[model]
kind = "gpt2"
layers = 4
width = 256
heads = 4
context = 128
[train]
steps = {steps}
batch_sequences = 16
evaluate_every = {steps}
evaluate_sequences = 4
[layout]
micro_batch = 4
"""
_WARM = 2
_NEAR = 1.05


class Case(NamedTuple):
    """One layout between so many hosts at a rate: what was predicted, and the steps taken."""

    hosts: int
    rate: str
    layout: str
    predicted: float
    steps: list[float]

    @property
    def measured(self) -> float:
        """The median step."""
        return median(self.steps)

    @property
    def error(self) -> float:
        """Relative, of the prediction."""
        return self.predicted / self.measured - 1.0


def main() -> int:
    """Run every case, or those chosen, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rate", nargs="+", default=RATES, help="of tc, such as 100mbit")
    parser.add_argument("--layout", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--steps", type=int, default=5, help="of each, the first two left out")
    parser.add_argument("--real-time", action="store_true", help=REAL_TIME)
    parser.add_argument("--keep", type=Path, help="a folder that plans and runs are kept in")
    parser.add_argument("--refresh", action="store_true", help="probe a host of one core again")
    chosen = parser.parse_args()
    if chosen.steps <= _WARM:
        parser.error(f"--steps must be more than {_WARM}")
    cases: list[Case] = []
    print(f"{'':24}{'step s':>22}{'':>8}   slowest step")
    print(f"{'':24}{'predicted':>11}{'measured':>11}{'error':>8}   over the median")
    try:
        for count in chosen.hosts:
            for rate in chosen.rate:
                with hosts(count, rate, real_time=chosen.real_time) as made:
                    cases += _cases(made, chosen)
                chosen.refresh = False
    except CannotEmulate as why:
        print(json.dumps({"left_out": str(why)}))
        return 0
    errors = [abs(case.error) for case in cases]
    lags = list(_lags(cases))
    answer = {
        "cases": len(cases), "error_median": round(median(errors), 4),
        "error_worst": round(max(errors), 4), "choices": len(lags),
        "choices_within_5_percent": sum(lag <= _NEAR for lag in lags),
        "choice_worst": round(max(lags), 3),
    }  # fmt: skip
    print(f"\n{json.dumps(answer)}")
    return 0


def _cases(made: Hosts, chosen: argparse.Namespace) -> list[Case]:
    """All layouts between these hosts, their link measured first."""
    cases, environment = [], host_environment()
    with tempfile.TemporaryDirectory() as folder:
        kept = chosen.keep and chosen.keep / f"{made.count}-{made.rate}"
        job = (kept or Path(folder)) / "job.toml"
        job.parent.mkdir(parents=True, exist_ok=True)
        job.write_text(JOB.format(steps=chosen.steps))
        if chosen.refresh:
            checked(made.run_alone([*NARROWS, "probe", "--refresh"], environment))
        said = checked(*made.run([*NARROWS, "probe", "--link", "--json"], environment))
        print(_link(said), flush=True)
        for name in chosen.layout:
            case = _case(made, name, job, environment)
            print(
                f"  {name:22}{case.predicted:11.3f}{case.measured:11.3f}{case.error:+8.0%}"
                f"{max(case.steps) / case.measured:13.2f}",
                flush=True,
            )
            cases.append(case)
    best = min(cases, key=lambda case: case.measured)
    taken = min(cases, key=lambda case: case.predicted)
    print(
        f"  the plan would choose {taken.layout}, {taken.measured / best.measured:.2f} x "
        f"the fastest, {best.layout}",
        flush=True,
    )
    return cases


def _case(made: Hosts, name: str, job: Path, environment: dict[str, str]) -> Case:
    path, run = job.with_name(f"{name}.toml"), job.with_name(name)
    sets = [f"--set=layout.{each.replace('N', str(made.count))}" for each in LAYOUTS[name]]
    checked(made.run_alone([*NARROWS, "plan", str(job), *sets, "-o", str(path)], environment))
    checked(*made.run([*NARROWS, "train", str(path), "--run", str(run)], environment))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["seconds"] for row in rows if "seconds" in row][_WARM:]
    return Case(made.count, made.rate, name, load(Plan, path).predicted.step_seconds, steps)


def _lags(cases: list[Case]) -> Iterator[float]:
    """How many times as long as the fastest the plan's choice takes, of each network."""
    for place in dict.fromkeys((case.hosts, case.rate) for case in cases):
        tried = [case for case in cases if (case.hosts, case.rate) == place]
        taken = min(tried, key=lambda case: case.predicted)
        yield taken.measured / min(case.measured for case in tried)


def _link(said: str) -> str:
    found = json.loads(said.splitlines()[-1])
    link, fit = found["link"], found["fits"][0]
    return (
        f"{link['name']}: {fit['operation']} {fit['latency']}, {fit['bandwidth']}, "
        f"error {fit['error']:.0%}; together {link['together']['value']:g} x"
    )


def checked(*done: Finished) -> str:
    """What the first host said; where one failed, that and the end of all."""
    for host, each in enumerate(done):
        if each.code:
            sys.exit(f"host {host} ended with code {each.code}:\n{each.told[-3000:]}")
    return done[0].said


def host_environment() -> dict[str, str]:
    """The environment of a host: the record of its one core is kept apart from this machine's."""
    whole = narrows_home()
    home = whole / "network"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("data", "native"):
        (whole / name).mkdir(exist_ok=True)
        if not (home / name).exists():
            (home / name).symlink_to(whole / name)
    return {**os.environ, "NARROWS_HOME": str(home)}


if __name__ == "__main__":
    sys.exit(main())
