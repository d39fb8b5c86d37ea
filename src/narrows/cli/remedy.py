"""A refusal for want of memory, with the commands that would fit."""

from __future__ import annotations

import argparse
import copy
import shlex
from typing import TYPE_CHECKING

from narrows.cli import fleet
from narrows.spec.errors import DoesNotFit

if TYPE_CHECKING:
    from narrows.plan.fleet.question import Question
    from narrows.plan.fleet.remedy import Change, Remedy

_SINGLE = ("machine", "model", "context", "batch", "tune", "region", "pue", "page")
_REPEATED = {"budget": "budget", "set": "overrides", "against": "against"}


def advised(refusal: DoesNotFit, chosen: argparse.Namespace, asked: Question) -> DoesNotFit:
    """The refusal with the smallest changes after which the same command fits."""
    from narrows.hardware.fleet import roomier
    from narrows.plan.fleet.remedy import remedies

    found = remedies(
        asked, lambda change: fleet.question(_changed(chosen, change)), roomier(asked.fleet)
    )
    lines = [_line(chosen, remedy) for remedy in found]
    hint = "\n  or: ".join(lines) or "a smaller model: no single change makes this one fit"
    return DoesNotFit(refusal.what, causes=refusal.causes, hint=hint)


def command(chosen: argparse.Namespace) -> str:
    """The command line of a fleet's plan that these arguments came from."""
    words = ["narrows", "plan"]
    for name in _SINGLE:
        value = getattr(chosen, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    words += [] if chosen.goal is None else ["--goal", chosen.goal]
    for option, name in _REPEATED.items():
        for value in getattr(chosen, name):
            words += [f"--{option}", value]
    return shlex.join(words)


def _line(chosen: argparse.Namespace, remedy: Remedy) -> str:
    told = f"{remedy.tokens_per_s:,.0f} tokens/s, {remedy.memory_bytes / 1e9:.1f} GB a device"
    return f"{command(_changed(chosen, remedy.change))}  # {told}"


def _changed(chosen: argparse.Namespace, change: Change) -> argparse.Namespace:
    """The arguments with one changed; a choice set to nothing is left open."""
    option, value = change
    changed = copy.copy(chosen)
    if option != "set":
        setattr(changed, option, int(value) if option == "context" else value)
        return changed
    key, _, to = value.partition("=")
    kept = [each for each in chosen.overrides if _key(each) != _key(key)]
    changed.overrides = [*kept, value] if to else kept
    return changed


def _key(assignment: str) -> str:
    return assignment.partition("=")[0].strip().removeprefix("layout.")
