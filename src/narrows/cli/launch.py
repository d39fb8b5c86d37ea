"""narrows launch: write, and submit, what runs a plan elsewhere."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import folder, speak
from narrows.plan.launch import TARGETS
from narrows.spec.errors import BadInput, RunFailed

if TYPE_CHECKING:
    from narrows.plan.launch.targets import Target
    from narrows.spec.plan import Plan

SUMMARY = "Write what runs a plan elsewhere: torchrun, Slurm, Kubernetes, Ray or SkyPilot."
EXAMPLES = """\
narrows launch plan.toml --on torchrun --nodes 2 --head node0     a script for each of two nodes
narrows launch plan.toml --on slurm --device gpu --nodes 2 -o plays.sbatch --submit
narrows launch plan.toml --on kubernetes --device gpu --image ghcr.io/me/narrows:1 --claim plays
narrows launch plan.toml --on ray --device cpu -o plays.py
narrows launch plan.toml --on skypilot --device cpu --setup "pip install narrows" -o plays.yaml"""

_OPTIONS = {
    "device": (("cpu", "gpu"), "what each process computes on (all but torchrun)"),
    "head": ("NAME", "the first node, as the others reach it (torchrun)"),
    "port": ("N", "a free port there, 29500 (torchrun)"),
    "partition": ("NAME", "where to queue (slurm)"),
    "account": ("NAME", "who pays (slurm)"),
    "time": ("LIMIT", "the longest it may run, as sbatch reads it: 2:00:00 (slurm)"),
    "setup": ("COMMANDS", "what the shell runs first (slurm, skypilot)"),
    "image": ("NAME", "a container image with narrows in it (kubernetes)"),
    "claim": ("NAME", "the volume claim for the text and the run (kubernetes)"),
    "namespace": ("NAME", "default (kubernetes)"),
    "runtime": ("NAME", "the training runtime, torch-distributed (kubernetes)"),
    "accelerator": ("NAME", "the GPU to rent: H100 (skypilot)"),
    "cloud": ("NAME", "aws, aws/us-east-1, ...; else the cheapest (skypilot)"),
    "bucket": ("URL", "what keeps the run: s3://NAME (skypilot)"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", metavar="plan.toml", help="what narrows plan -o wrote")
    parser.add_argument("--on", choices=TARGETS, required=True, help="what starts the processes")
    parser.add_argument("--nodes", type=int, metavar="N", help="machines (1)")
    parser.add_argument("--per-node", type=int, metavar="N", help="processes of a machine (all)")
    parser.add_argument("--run", metavar="DIR", help="the run folder there (runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    parser.add_argument("-o", "--output", metavar="FILE", help="write it here, else print it")
    parser.add_argument("--submit", action="store_true", help="and start it (needs -o)")
    for name, (values, told) in _OPTIONS.items():
        given = {"metavar": values} if isinstance(values, str) else {"choices": values}
        kind = int if name == "port" else str
        parser.add_argument(f"--{name}", type=kind, help=told, **given)


def run(chosen: argparse.Namespace) -> int:
    """Write the file and start it where that is asked."""
    from narrows.plan.launch.targets import target
    from narrows.plan.launch.work import Work, placed
    from narrows.spec.record import write_atomically

    if chosen.submit and not chosen.output:
        raise BadInput("--submit needs a file to hand over", hint="-o FILE")
    given = {name: value for name in _OPTIONS if (value := getattr(chosen, name)) is not None}
    where = target(chosen.on, given)
    plan = _planned(chosen.file)
    nodes, per_node = placed(plan.layout, chosen.nodes, chosen.per_node)
    work = Work(
        plan=plan, file=str(Path(chosen.file).absolute()), run=_run_folder(chosen, plan, where),
        nodes=nodes, per_node=per_node, resume=chosen.resume,
    )  # fmt: skip
    text = where.text(work)
    named = chosen.output or f"{work.label}{where.suffix}"
    submission = where.submission(work, named)
    if chosen.output:
        write_atomically(Path(chosen.output), text.encode())
        speak.talk(f"wrote {chosen.output}")
    if chosen.json:
        speak.answer_json({"on": chosen.on, "text": text, "submission": submission})
    elif not chosen.output:
        speak.answer(text.rstrip())
    if chosen.submit:
        _submit(submission)
    after = shlex.join(["narrows", "report", work.run] if chosen.submit else submission)
    speak.next_step(after if chosen.output else f"the same with -o {named}; {after}")
    return 0


def _planned(file: str) -> Plan:
    """The plan in a file; raises BadInput where that is a job, which is to be planned first."""
    from narrows.spec import record
    from narrows.spec.plan import Plan

    data = record.read(file)
    if isinstance(data, dict) and "made_from" not in data:
        given = shlex.quote(file)
        hint = f"narrows plan {given} --processes N -o plan.toml; narrows launch plan.toml"
        raise BadInput(f"{file} is no plan, in which every value is settled", hint=hint)
    return record.from_builtins(Plan, data, source=file)


def _run_folder(chosen: argparse.Namespace, plan: Plan, where: Target) -> str:
    """Where the processes keep the run: here, for who sees this file system, else as they say."""
    if where.runs is not None:
        return chosen.run or f"{where.runs}/{plan.name}"
    if not chosen.resume:
        return str(folder.fresh(chosen.run, plan.name).absolute())
    found = folder.existing(chosen.run) if chosen.run else folder.newest(plan.name)
    if folder.plan_of(found).layout != plan.layout:
        own = shlex.quote(str(found / "plan.toml"))
        raise BadInput(
            f"{found} is laid out in another way than {chosen.file}",
            hint=f"narrows launch {own} --on {chosen.on} --resume --run {shlex.quote(str(found))}",
        )
    return str(found.absolute())


def _submit(words: list[str]) -> None:
    command = shlex.join(words)
    try:
        import subprocess

        done = subprocess.run(words, check=False)
    except FileNotFoundError:
        hint = f"where it is: {command}"
        raise BadInput(f"{words[0]} is not on this machine", hint=hint) from None
    if done.returncode:
        raise RunFailed(f"{command} ended with {done.returncode}", hint=f"try it alone: {command}")
