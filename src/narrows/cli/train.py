"""narrows train: run a plan, or plan a job and run it."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import folder, intent, speak
from narrows.spec.errors import BadInput
from narrows.spec.resuming import resuming

if TYPE_CHECKING:
    from narrows.model.transformer import Transformer
    from narrows.spec.ledger import Ledger
    from narrows.spec.machine import Machine
    from narrows.spec.plan import Plan

SUMMARY = "Train a model by a plan; a job is probed, prepared and planned first."
EXAMPLES = """\
narrows train --budget 5min --corpus shakespeare    from nothing to a model
narrows train job.toml                              probe, prepare, plan and train
narrows train plan.toml                             train what was planned
narrows train runs/shakespeare --resume             go on where it stopped
narrows train RUN --resume --set layout.data=2      go on in another layout
narrows train plan.toml --timeline                  and note what is hidden behind what"""

SAMPLE_TOKENS = 120


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    intent.arguments(parser, file="job.toml|plan.toml|RUN")
    parser.add_argument("--run", metavar="DIR", help="the run folder (default runs/NAME)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run stopped; without a name the last one",
    )
    parser.add_argument(
        "--timeline", action="store_true",
        help="note what every process does when in three early steps, for the report and Perfetto",
    )  # fmt: skip
    parser.add_argument(
        "--survive", choices=["restart", "shrink", "none"], default="restart",
        help="where one of several processes ends or hangs: start all again (the default), in "
        "fewer processes if that keeps failing, or stop",
    )  # fmt: skip


def run(chosen: argparse.Namespace) -> int:
    """Train, and show what was measured beside what was predicted."""
    from narrows.train.attend import attend
    from narrows.train.group import speaks, started

    attend()
    worker = started() is not None
    plan, run_folder, machine = (_resumed if chosen.resume else _new)(chosen, worker)
    # A worker that is started again goes on, whoever starts it.
    resume = chosen.resume or (worker and (run_folder / "plan.toml").exists())
    if plan.layout.processes > 1 and not worker:
        return _launched(plan, run_folder, machine, chosen)
    from narrows.report.facts import facts
    from narrows.report.text import text
    from narrows.train.run import Also, train

    if speaks():
        speak.talk(f"training in {run_folder}")
    ledger = train(
        plan, run_folder, machine=machine, resume=resume, talk=speak.talk,
        also=Also(_sampler(plan), chosen.timeline),
    )  # fmt: skip
    if not speaks():
        return 0
    _remember(plan, machine, ledger)
    if chosen.json:
        speak.answer_json(facts(run_folder))
    else:
        speak.answer(text(run_folder))
    speak.next_step(folder.after(run_folder))
    return 0


def _launched(plan: Plan, run_folder: Path, machine: Machine, chosen: argparse.Namespace) -> int:
    """Write the run folder and go on in it with as many processes as the layout takes."""
    from narrows.spec.record import save
    from narrows.train.survive import Survival, train_together

    run_folder.mkdir(parents=True, exist_ok=True)
    save(machine, run_folder / "machine.toml")
    speak.talk(f"{plan.layout.processes} processes of {plan.layout.threads} threads each")
    arguments = [f"--{name}" for name in ("json", "timeline") if getattr(chosen, name)]
    train_together(plan, run_folder, speak.talk, Survival(mode=chosen.survive), arguments)
    return 0


def _new(chosen: argparse.Namespace, worker: bool) -> tuple[Plan, Path, Machine]:
    from narrows.spec.plan import Plan

    if chosen.file and Path(chosen.file).is_dir():
        path = folder.existing(chosen.file)
        raise BadInput(f"{path} holds a run already", hint=resuming(path))
    wanted = intent.read(chosen)
    if worker:
        run_folder = folder.shared(chosen.run, wanted)
    else:
        run_folder = folder.fresh(chosen.run, wanted.name)
    machine = intent.machine(None)
    if isinstance(wanted, Plan):
        return wanted, run_folder, machine
    from narrows.plan.render import text

    plan = intent.planned(wanted, machine)
    speak.talk(text(plan))
    return plan, run_folder, machine


def _resumed(chosen: argparse.Namespace, worker: bool) -> tuple[Plan, Path, Machine]:
    if chosen.run:
        run_folder = folder.existing(chosen.run)
    elif chosen.file and Path(chosen.file).is_dir():
        run_folder = folder.existing(chosen.file)
    elif chosen.file or chosen.corpus:
        run_folder = folder.newest(intent.read(chosen).name)
    else:
        run_folder = folder.newest(None)
    plan, machine = folder.plan_of(run_folder), intent.machine(None)
    new = _wanted(plan, machine, chosen)
    if worker and new != plan:
        raise BadInput(
            f"{run_folder} is laid out in another way than {chosen.file}",
            hint=_launching(plan, run_folder),
        )
    return _settled(plan, new, run_folder), run_folder, machine


def _launching(plan: Plan, run_folder: Path) -> str:
    """What starts a run as it is laid out, on as many hosts as this process is one of."""
    of_host = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    hosts = int(os.environ["WORLD_SIZE"]) // of_host
    words = ["narrows", "launch", str(run_folder / "plan.toml"), "--on", "torchrun"]
    if hosts > 1 and plan.layout.processes % hosts == 0:
        words += ["--nodes", str(hosts), "--head", os.environ.get("MASTER_ADDR", "node0")]
    return shlex.join([*words, "--resume", "--run", str(run_folder)])


def _wanted(plan: Plan, machine: Machine, chosen: argparse.Namespace) -> Plan:
    """The plan of a run as it is to go on: as a file of another says, or as options do."""
    from narrows.plan.change import changed, continued
    from narrows.spec.plan import Plan
    from narrows.spec.record import digest

    if asked := intent.overrides(chosen):
        return changed(plan, machine, asked)
    if not chosen.file or Path(chosen.file).is_dir():
        return plan
    given = intent.read(chosen)
    if isinstance(given, Plan):
        return continued(plan, given, machine)
    if digest(given) != plan.made_from.job:
        speak.talk(f"the run began with another job than {chosen.file}, and goes on with that")
    return plan


def _settled(plan: Plan, new: Plan, run_folder: Path) -> Plan:
    """The plan as it goes on, written to the run folder; what changed is said there, too."""
    from narrows.plan.change import described
    from narrows.spec.record import save
    from narrows.train.events import note
    from narrows.train.lock import locked

    if new == plan:
        return plan
    message = f"{described(plan.layout)} -> {described(new.layout)}; on a spike: {new.on_spike}"
    with locked(run_folder):
        save(new, run_folder / "plan.toml")
        note(run_folder, folder.step_of(run_folder), "layout", message)
    speak.talk(message)
    return new


def _sampler(plan: Plan) -> Callable[[Transformer], str] | None:
    """Writes a little text at each checkpoint, to be read in the report."""
    from narrows.data.tokenizers import read
    from narrows.infer.sample import sample

    if plan.data is None or plan.model.classes or not plan.model.writes:
        return None
    tokenizer = read(Path(plan.data.folder) / "tokenizer.json")
    return lambda model: sample(model, tokenizer, "", SAMPLE_TOKENS, plan.seed)


def _remember(plan: Plan, machine: Machine, ledger: Ledger) -> None:
    """Correct the machine by what one process measured, where the plan was made with it as it is:
    of several it does not know what they tell each other.
    """
    from narrows.hardware.probe import path
    from narrows.plan.calibrate import recalibrated
    from narrows.spec.record import digest, save

    if plan.layout.processes == 1 and plan.made_from.machine == digest(machine):
        save(recalibrated(machine, plan.predicted, ledger), path())
        speak.talk("the next plan knows what this run measured")
