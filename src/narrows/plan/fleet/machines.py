"""What if it were another machine: the same step on other fleets, and on more or fewer devices."""

from __future__ import annotations

import math

from narrows.plan.fleet.best import best_alone
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.search import Found, Goal
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Elsewhere


def refuse_unknown(question: Question) -> None:
    """Raises BadInput where the goal is of what is not known of the fleet."""
    fleet, goal = question.fleet, question.goal
    if not _is_known(fleet, goal):
        what = {"money": "price", "energy": "power"}[goal]
        raise BadInput(
            f"the {what} of {fleet.accelerator} is not known, so no layout is best for {goal}",
            hint="--goal time, or --goal memory",
        )


def against(work: Work, question: Question, own: Elsewhere) -> tuple[Elsewhere, ...]:
    """The fleet itself beside those it is set against, the best for the goal first."""
    if not question.against:
        return ()
    free = question.wanted.free()
    others = [_searched(work, question, fleet, free) for fleet in question.against]
    return tuple(sorted((own, *others), key=lambda each: _cost(each, question.goal)))


def place(work: Work, question: Question, fleet: Fleet, found: Found) -> Elsewhere:
    """The step at its best on a fleet whose layouts were found."""
    chosen = found.best(_goal(question, fleet))
    if chosen is None:
        least = float(found.bytes.min()) / 1e9
        return Elsewhere(
            fleet=fleet.name, devices=fleet.devices, spread=None,
            verdict=f"does not fit: {least:.1f} GB of {found.limit / 1e9:.1f} GB at the least",
        )  # fmt: skip
    tokens, seconds = question.batch * work.positions, float(found.seconds[chosen])
    price = float(fleet.price.value) * fleet.devices / 3600.0 if fleet.price else None
    energy = float(found.joules[chosen])
    return Elsewhere(
        fleet=fleet.name,
        devices=fleet.devices,
        spread=found.spreads.spread(chosen),
        step_seconds=seconds,
        tokens_per_s=tokens / seconds,
        memory_peak=float(found.bytes[chosen]),
        dollars_per_billion_tokens=None if price is None else price * seconds / tokens * 1e9,
        joules_per_token=energy / tokens if energy else None,
    )


def scaling(work: Work, question: Question, own: Elsewhere) -> tuple[Elsewhere, ...]:
    """The same batch on fewer and on more of the same devices, `own` on as many."""
    return tuple(
        own if each == question.fleet else _searched(work, question, each, question.wanted)
        for each in question.ladder
    )


def _searched(work: Work, question: Question, fleet: Fleet, wanted: Wanted) -> Elsewhere:
    try:
        found = best_alone(work, fleet, question.batch, wanted, _goal(question, fleet))
    except BadInput as refusal:
        return Elsewhere(fleet=fleet.name, devices=fleet.devices, spread=None, verdict=refusal.what)
    return place(work, question, fleet, found)


def _goal(question: Question, fleet: Fleet) -> Goal:
    return question.goal if _is_known(fleet, question.goal) else "time"


def _is_known(fleet: Fleet, goal: Goal) -> bool:
    fact = {"money": fleet.price, "energy": fleet.power_full}
    return goal not in fact or fact[goal] is not None


def _cost(each: Elsewhere, goal: Goal) -> float:
    """What the goal makes least, of a token; infinite where it is not known or nothing fits."""
    value = {
        "time": None if each.tokens_per_s is None else 1.0 / each.tokens_per_s,
        "money": each.dollars_per_billion_tokens, "energy": each.joules_per_token,
        "memory": each.memory_peak,
    }[goal]  # fmt: skip
    return math.inf if value is None else value
