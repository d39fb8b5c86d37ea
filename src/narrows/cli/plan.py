"""narrows plan: settle every value of a run and predict it, before anything is allocated."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from narrows.cli import fleet, intent, remedy, service, speak
from narrows.spec.errors import BadInput, DoesNotFit

SUMMARY = "Settle every value of a run, and predict its time, memory, energy and cost."
EXAMPLES = """\
narrows plan --budget 5min --corpus shakespeare     the best model for five minutes here
narrows plan job.toml -o plan.toml                  keep the plan, to train it later
narrows plan job.toml --set model.layers=12         what if
narrows plan job.toml --processes 4                 the quickest layout of so many processes
narrows plan job.toml --machine other.toml          on a machine probed elsewhere
narrows plan smollm2-135m                           a published model on this machine
narrows plan llama-3.1-8b --machine 8xh100-sxm      on machines to rent
narrows plan --machine 8xh100-sxm --budget "$10,000"        what they can train for that
narrows plan llama-3.1-8b --machine h100-sxm --serve 32     how it would answer
narrows plan llama-3.1-70b --machine 8xh100-sxm --rate "5 requests/s" --first-token 1s
narrows plan llama-3.1-8b --machine 8xh100-sxm --trace      and what a rank really does"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    intent.arguments(parser, file="job.toml|MODEL")
    parser.add_argument(
        "--machine", metavar="FILE|NAME",
        help="here, a probed one (narrows probe -o), or [NODESx][DEVICESx]ACCELERATOR",
    )  # fmt: skip
    fleet.arguments(parser)
    service.arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write the plan here")


def run(chosen: argparse.Namespace) -> int:
    """Plan and show."""
    from narrows.spec.plan import Plan
    from narrows.spec.record import save

    fleet.understand(chosen)
    if fleet.is_fleet(chosen):
        return _for_a_fleet(chosen)
    fleet.refuse(chosen, service.OWN)
    job = intent.read(chosen)
    if isinstance(job, Plan):
        raise BadInput(f"{chosen.file} is a plan already", hint=f"narrows train {chosen.file}")
    from narrows.plan.render import text

    plan = intent.planned(job, intent.machine(chosen.machine))
    if chosen.output:
        save(plan, chosen.output)
        speak.talk(f"wrote {chosen.output}")
    if chosen.json:
        speak.answer_json(plan)
    else:
        speak.answer(text(plan))
    after = f"narrows train {shlex.quote(chosen.output)}" if chosen.output else None
    speak.next_step(after or intent.command("train", chosen))
    return 0


def _for_a_fleet(chosen: argparse.Namespace) -> int:
    from narrows.spec.record import Record, save

    found: Record
    after = "narrows plan --budget 5min --corpus shakespeare   (what this machine can do)"
    if service.is_asked(chosen):
        served, told = service.answer(chosen)
        found, after = served, service.command(served) or after
    else:
        from narrows.plan.fleet.forecast import forecast
        from narrows.plan.fleet.render import text

        asked = fleet.question(chosen)
        try:
            predicted = forecast(asked)
        except DoesNotFit as refusal:
            raise remedy.advised(refusal, chosen, asked) from None
        found, told = predicted, text(predicted)
        if chosen.trace:
            found, told = fleet.traced(asked, predicted.spread)
        if chosen.page:
            from narrows.report import outlook

            outlook.write(predicted, Path(chosen.page))
            speak.talk(f"wrote {chosen.page}")
    if chosen.output:
        save(found, chosen.output)
        speak.talk(f"wrote {chosen.output}")
    if chosen.json:
        speak.answer_json(found)
    else:
        speak.answer(told)
    speak.next_step(after)
    return 0
