"""What somebody wants to train: a job file, a plan file or a budget, read from the arguments."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrows.cli import speak
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.spec.dataset import Dataset
    from narrows.spec.job import Job
    from narrows.spec.machine import Machine
    from narrows.spec.plan import Plan, Start


def arguments(parser: argparse.ArgumentParser, *, file: str) -> None:
    """Declare the arguments that say what is wanted."""
    parser.add_argument("file", metavar=file, nargs="?", help="else --corpus and --budget say what")
    parser.add_argument(
        "--corpus", help="shakespeare, python, hf:NAME, or a file or folder (the job's otherwise)"
    )
    parser.add_argument(
        "--budget", action="append", default=[], metavar="AMOUNT",
        help='plan for at most this: "5min", "0.4 kWh", "$20" or "20M tokens"; repeatable',
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides",
        help="override a key of the job; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=int, metavar="N",
        help="of so many processes, laid out as the plan finds quickest (layout.processes)",
    )  # fmt: skip
    parser.add_argument(
        "--allow", action="append", default=[], choices=["recompute"],
        help="recompute: let the plan drop activations and compute them again, whatever the "
        "job says",
    )  # fmt: skip


def read(chosen: argparse.Namespace) -> Job | Plan:
    """The job, overrides applied, or the plan that the file holds."""
    from narrows.plan.family import check
    from narrows.spec import record
    from narrows.spec.job import Job
    from narrows.spec.plan import Plan

    data = _told(chosen.file) if chosen.file else _job_of(chosen.corpus)
    source = chosen.file or "the command line"
    if isinstance(data, dict) and "made_from" in data:
        if chosen.corpus or chosen.budget or overrides(chosen) or chosen.allow:
            what = f"{source} is a plan: every value in it is settled"
            raise BadInput(what, hint="give them to narrows plan, with the job that it was made of")
        return record.from_builtins(Plan, data, source=source)
    job = record.from_builtins(Job, _overridden(data, chosen), source=source)
    # No machine is measured and no text prepared for a model that cannot be.
    check(job.model)
    return job


def machine(file: str | None) -> Machine:
    """The machine described in `file`; where that is "here" or None this one, measured now where it
    was not yet.
    """
    from narrows.hardware.probe import machine_known, probe
    from narrows.spec.machine import Machine
    from narrows.spec.record import load

    if file and file != "here":
        return load(Machine, file)
    return machine_known() or probe(talk=speak.talk)


def planned(job: Job, machine: Machine) -> Plan:
    """The plan of `job`, its data prepared and the model that it starts from opened."""
    from narrows.plan.plan import make_plan

    start = started(job)
    return make_plan(job, machine, dataset(job, start), start, teacher(job))


def started(job: Job) -> Start | None:
    """The published model that `job` starts from, its tokenizer and template laid out."""
    return None if job.model.start is None else _opened(job.model.start)


def teacher(job: Job) -> Start | None:
    """The published model that `job` learns from."""
    from narrows.spec.objective import Distil

    asked = job.train.objective
    return _opened(asked.teacher) if isinstance(asked, Distil) else None


def _opened(name: str) -> Start:
    from narrows.data.recalled import recall, remember

    path = Path(name)
    start = recall(path)
    if start is None:
        from narrows.train.start import started as opened

        start = opened(path, talk=speak.talk)
        remember(path, start)
    return start


def dataset(job: Job, start: Start | None = None) -> Dataset | None:
    """The prepared data of `job`; prepared now where it was not yet."""
    import msgspec

    from narrows.data.prepare import known, prepare
    from narrows.spec.objective import OF_EXAMPLES

    data, words = job.data, None if start is None else Path(start.words)
    if data is None:
        return None
    if isinstance(job.train.objective, OF_EXAMPLES):
        from narrows.data import examples

        return examples.prepare(data, job.train.objective, words, talk=speak.talk)
    if words is not None:
        # The model reads no tokens but its own.
        data = msgspec.structs.replace(data, tokenizer=str(words / "tokenizer.json"))
    return known(data) or prepare(data, talk=speak.talk)


def concrete(hint: str | None, chosen: argparse.Namespace) -> str | None:
    """A room's hint speaks of job.toml: the same hint with what was really given."""
    if hint is None or not hasattr(chosen, "overrides"):
        return hint
    given = command("", chosen).removeprefix("narrows '' ")
    return hint.replace("job.toml", given)


def command(verb: str, chosen: argparse.Namespace) -> str:
    """The command line of `verb` that wants the same."""
    words = ["narrows", verb, *([chosen.file] if chosen.file else [])]
    words += ["--corpus", chosen.corpus] if chosen.corpus else []
    for option, values in (("budget", chosen.budget), ("set", chosen.overrides)):
        for value in values:
            words += [f"--{option}", value]
    for value in chosen.allow:
        words += ["--allow", value]
    words += [] if chosen.processes is None else ["--processes", str(chosen.processes)]
    return shlex.join(words)


def overrides(chosen: argparse.Namespace) -> list[str]:
    """What --set says, and --processes for short."""
    count = chosen.processes
    return [*([] if count is None else [f"layout.processes={count}"]), *chosen.overrides]


def _told(file: str) -> Any:
    """What a file of a job or a plan says."""
    from narrows.spec import record

    try:
        return record.read(file)
    except BadInput as error:
        if not Path(file).is_file() or file.endswith((".toml", ".json")):
            raise
        what = f"{file} is neither a job nor a plan: {error.what.removeprefix(f'{file} is ')}"
        raise BadInput(what, hint=f"a text to train on: --corpus {shlex.quote(file)}") from None


def _job_of(corpus: str | None) -> dict[str, Any]:
    if not corpus:
        hint = "give a file of a job, or: --corpus shakespeare --budget 5min"
        raise BadInput("nothing says what to train", hint=hint)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(corpus.removeprefix("hf:")).stem).strip("-._")
    return {"name": name or "job", "data": {"corpus": corpus}}


def _overridden(data: Any, chosen: argparse.Namespace) -> Any:
    from narrows.spec import record
    from narrows.spec.job import budget

    if not isinstance(data, dict):
        return data
    if "recompute" in chosen.allow:
        layout = data.get("layout", {})
        kept = {key: layout[key] for key in layout if key != "recompute"}
        data = {**data, "layout": kept}
    if chosen.corpus and chosen.file:
        data = {**data, "data": {**data.get("data", {}), "corpus": chosen.corpus}}
    if chosen.budget:
        data = {**data, "budget": record.to_builtins(budget(*chosen.budget))}
    for assignment in overrides(chosen):
        data = record.with_override(data, assignment)
    return data
