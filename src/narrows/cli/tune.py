"""narrows tune: search a job's keys, or its learning rate alone, within a budget."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import folder, intent, speak
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.spec.job import Job
    from narrows.spec.plan import Plan
    from narrows.spec.tuning import Axis, Value
    from narrows.train.tune import Limits

SUMMARY = "Search keys of a job for the lowest validation loss, within a budget; ends with a job."
EXAMPLES = """\
narrows tune job.toml --learning-rate              one short run whose rate rises: which to take
narrows tune job.toml --over "train.learning_rate=1e-4..1e-2[log]" --budget 30min
narrows tune job.toml --over train.optimizer=adamw,lion --over model.layers=2..6 --trials 20
narrows tune job.toml --learning-rate --run DIR    keep it there; again, it goes on"""

_TRIALS = 50
_PART = 10.0
"""Trials that a budget of time holds at least, where the job does not say how long one is."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    intent.arguments(parser, file="job.toml")
    parser.add_argument(
        "--over", action="append", default=[], metavar="KEY=VALUES",
        help="search this key: low..high, low..high[log], or a,b,c; repeatable",
    )  # fmt: skip
    parser.add_argument("--learning-rate", action="store_true", help="a range test of the rate")
    parser.add_argument("--trials", type=int, metavar="N", help="at most so many (default 50)")
    parser.add_argument("--steps", type=int, metavar="N", help="of a range test (default 100)")
    parser.add_argument("--run", metavar="DIR", help="the folder (default runs/NAME-tuned)")


def run(chosen: argparse.Namespace) -> int:
    """Search, and write the job that was found."""
    if bool(chosen.over) == chosen.learning_rate:
        raise BadInput(
            "a search goes over keys, or is a range test of the learning rate",
            hint='give either --over "train.learning_rate=1e-4..1e-2[log]" or --learning-rate',
        )
    for name, wanted in (("trials", chosen.over), ("steps", chosen.learning_rate)):
        value = getattr(chosen, name)
        if value is not None and (value < 1 or not wanted):
            hint = "at least 1" if wanted else "leave it out"
            raise BadInput(f"--{name} {value} means nothing here", hint=hint)
    return _swept(chosen) if chosen.learning_rate else _tuned(chosen)


def _swept(chosen: argparse.Namespace) -> int:
    from narrows.report.tuned import write
    from narrows.train.sweep import STEPS, sweep, swept

    job = _job(chosen)
    machine = intent.machine(None)
    at = _folder(chosen, f"{job.name}-sweep")
    plan = swept(intent.planned(job, machine), chosen.steps or STEPS)
    resume = (at / "plan.toml").exists()
    if resume and folder.plan_of(at) != plan:
        raise BadInput(f"{at} holds another run", hint="another --run")
    found = sweep(plan, at, machine=machine, resume=resume, talk=speak.talk)
    page = write(found, at)
    best = _written(chosen, {"train.learning_rate": found.suggested}, at)
    if chosen.json:
        speak.answer_json(found)
    else:
        speak.answer(f"learning rate {found.suggested:g}: {found.why}")
    _end(best, page)
    return 0


def _tuned(chosen: argparse.Namespace) -> int:
    from narrows.report.tuned import text, write
    from narrows.spec.tuning import assignment, axis
    from narrows.train.tune import Search, tune

    axes, limits = tuple(axis(each) for each in chosen.over), _limits(chosen)
    job = _job(chosen)
    for each in axes:
        _check_taken(chosen, each)
    machine = intent.machine(None)
    at = _folder(chosen, f"{job.name}-tuned")

    def planned(values: dict[str, Value]) -> Plan:
        sets = [assignment(key, value) for key, value in values.items()]
        return intent.planned(_job(chosen, *sets), machine)

    found = tune(Search(job.name, axes, planned, job.seed), limits, at, machine, speak.talk)
    page = write(found, at)
    assert found.winner is not None
    best = _written(chosen, found.winner.values, at)
    if chosen.json:
        speak.answer_json(found)
    else:
        speak.answer(text(found))
    _end(best, page)
    return 0


def _check_taken(chosen: argparse.Namespace, over: Axis) -> None:
    """Raises BadInput where the job takes no value of an axis: its key is misspelt, say."""
    from narrows.spec.tuning import assignment

    refused = None
    for value in over.some:
        try:
            _job(chosen, assignment(over.key, value))
            return
        except BadInput as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _end(best: Path, page: Path) -> None:
    speak.talk(f"wrote {best} and {page}")
    speak.next_step(f"narrows train {shlex.quote(str(best))}")


def _job(chosen: argparse.Namespace, *sets: str) -> Job:
    """The job with `sets` put in. A budget that was given is the search's: a trial's own is in the
    job, else a tenth of that.
    """
    from narrows.spec.plan import Plan

    given = {**vars(chosen), "budget": [], "overrides": [*chosen.overrides, *sets]}
    job = intent.read(argparse.Namespace(**given))
    if isinstance(job, Plan):
        raise BadInput(f"{chosen.file} is a plan: nothing in it is open", hint="give its job.toml")
    if job.budget is not None or job.train.steps is not None or chosen.learning_rate:
        return job
    limits = _limits(chosen)
    if limits.seconds is None:
        raise BadInput(
            "nothing says how long one trial is",
            hint='--set train.steps=200, or --set budget.time="2 min"',
        )
    share = f'budget.time="{limits.seconds / _PART:g} s"'
    return _job(chosen, *sets, share)


def _limits(chosen: argparse.Namespace) -> Limits:
    from narrows.spec.job import budget
    from narrows.train.tune import Limits

    asked = budget(*chosen.budget)
    for name in ("money", "tokens"):
        if getattr(asked, name) is not None:
            raise BadInput(
                f"a search has no budget of {name}", hint='--budget "30min", or "0.1 kWh"'
            )
    seconds, joules = asked.time, asked.energy
    return Limits(
        chosen.trials or _TRIALS, None if seconds is None else float(seconds),
        None if joules is None else float(joules),
    )  # fmt: skip


def _folder(chosen: argparse.Namespace, name: str) -> Path:
    """Where the search is, or goes on."""
    return Path(chosen.run) if chosen.run else Path("runs") / name


def _written(chosen: argparse.Namespace, values: dict[str, Value], at: Path) -> Path:
    """The job with the values that were found, ready to be trained."""
    from narrows.spec.record import save
    from narrows.spec.tuning import assignment

    path = at / "job.toml"
    save(_job(chosen, *(assignment(key, value) for key, value in values.items())), path)
    return path
