"""Train in several processes on this machine, again and again until it is done.

Where a process is killed, fails or hangs, the others are ended and all start again, from the newest
good checkpoint, in a new group: on another port, with another store. Several attempts that save
nothing new are the end, or the reason to go on in fewer processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from narrows.plan.change import relaid
from narrows.plan.gradients import islands
from narrows.plan.processes import fewer
from narrows.spec.errors import BadInput, DoesNotFit, Interrupted, NarrowsError, RunFailed
from narrows.spec.layout import Layout
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.spec.record import load, save
from narrows.spec.resuming import resuming
from narrows.train.events import note
from narrows.train.launcher import NARROWS, Start, Workers
from narrows.train.lock import locked
from narrows.train.pulse import Failure
from narrows.train.signals import StopRequest
from narrows.train.silence import Patience

Mode = Literal["shrink", "restart", "none"]


class Survival(NamedTuple):
    """What to do about a process that ends or hangs; `most` attempts in a row may save nothing
    new.
    """

    mode: Mode = "restart"
    most: int = 3
    patience: Patience = Patience()


def train_together(
    plan: Plan, run: Path, talk: Callable[[str], None], survival: Survival,
    arguments: Sequence[str] = (), command: Sequence[str] = NARROWS,
) -> None:  # fmt: skip
    """Run `narrows train RUN --resume` in each process of the plan's layout until all end well.

    Raises RunFailed where it cannot go on, and Interrupted after ctrl-C. What the processes say
    goes where this one's words go.
    """
    with locked(run) as lock, StopRequest() as stop:
        assert lock is not None
        save(plan, run / "plan.toml")
        signs = run / "processes"
        shutil.rmtree(signs, ignore_errors=True)
        attempt, idle, saved = 0, 0, _newest(run)
        while True:
            attempt += 1
            whole = [*command, "train", str(run), "--resume", *arguments]
            folder = signs / f"attempt-{attempt:04d}"
            start = Start(whole, plan.layout.processes, folder, lock.fileno())
            workers = Workers(start, survival.patience)
            try:
                failure = workers.wait(stop)
            finally:
                workers.kill()
            if failure is None:
                return
            idle, saved = (0, _newest(run)) if _newest(run) > saved else (idle + 1, saved)
            _refuse(failure, stop, run, survival)
            step = workers.watch.furthest
            if idle >= survival.most:
                plan, idle = _smaller(plan, run, failure, survival), 0
                message = (
                    f"{_short(failure)}; {survival.most} attempts saved nothing new: going "
                    f"on in {plan.layout.processes} processes, the batch as large as before"
                )
                _say(run, talk, step, "shrink", message, failure)
                continue
            message = f"{_short(failure)}; starting again from step {max(0, saved)}"
            _say(run, talk, step, "restart", message, failure)


def _refuse(failure: Failure, stop: StopRequest, run: Path, survival: Survival) -> None:
    """Raise what ends the training: what another attempt would meet again, or a wish."""
    again = resuming(run)
    if stop.asked or failure.kind == "asked":
        saved = "the state is saved" if failure.kind == "asked" else "the newest checkpoint is kept"
        raise Interrupted(f"stopped; {saved}", hint=again)
    kinds: dict[str, type[NarrowsError]] = {"input": BadInput, "fit": DoesNotFit}
    if failure.kind in kinds or failure.kind == "diverged" or survival.mode == "none":
        kind = kinds.get(failure.kind, RunFailed)
        raise kind(failure.what, causes=failure.causes, hint=failure.hint or again)


def _smaller(plan: Plan, run: Path, failure: Failure, survival: Survival) -> Plan:
    """The plan with half the data ranks, written to the folder; raises RunFailed where that cannot
    be or is not wanted.
    """
    half = _half(plan)
    layout = half if survival.mode == "shrink" else None
    if layout is None:
        able = survival.mode == "restart" and half is not None
        raise RunFailed(
            f"{survival.most} attempts in a row saved nothing new; the last: {failure.what}",
            causes=failure.causes,
            hint=f"{resuming(run)} --survive shrink" if able
            else failure.hint or resuming(run),
        )  # fmt: skip
    why = plan.why | {"layout.data": f"a process kept failing: {failure.what}"}
    plan = msgspec.structs.replace(plan, why=why)
    plan = relaid(plan, layout, load(Machine, run / "machine.toml"))
    save(plan, run / "plan.toml")
    return plan


def _half(plan: Plan) -> Layout | None:
    """The plan's layout on half the data ranks; None where there is none, or where they cannot
    exchange gradients as the plan says.
    """
    layout = fewer(plan.layout)
    if layout is None:
        return None
    try:
        islands(plan.exchange, layout)
    except BadInput:
        return None
    return layout


def _say(
    run: Path, talk: Callable[[str], None], step: int, event: str, message: str, failure: Failure
) -> None:  # fmt: skip
    note(run, step, event, "\n".join([message, *failure.causes]))
    talk("\n".join([f"warning: {message}", *(f"  {cause}" for cause in failure.causes)]))


def _short(failure: Failure) -> str:
    return failure.what.splitlines()[0]


def _newest(run: Path) -> int:
    """The newest checkpoint's step; -1 where there is none."""
    names = [path.name for path in (run / "checkpoints").glob("step-*") if not path.suffix]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)
