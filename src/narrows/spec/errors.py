"""What a user is told when something cannot be done: what, why, and a command that works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class NarrowsError(Exception):
    """A failure the user can act on, printed as `error:`, indented causes and `hint:`.

    `causes` are the largest contributors, one line each; `hint` is a command or an edit that works.
    It is `told` where another process says it to the user.
    """

    exit_code = 1
    told = False

    def __init__(self, what: str, *, causes: Iterable[str] = (), hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.causes = tuple(causes)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what, *(f"  {cause}" for cause in self.causes)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class BadInput(NarrowsError):
    """The input cannot be used as it stands."""

    exit_code = 2


class DoesNotFit(NarrowsError):
    """The job needs more of a resource than the machine has."""

    exit_code = 3


class RunFailed(NarrowsError):
    """A run started and had to stop; what was reached is kept."""

    exit_code = 1


class Diverged(RunFailed):
    """What is learned went wrong: the same steps would go wrong again."""


class LostOthers(RunFailed):
    """Another process of the run is gone; why, that one knows."""


class Interrupted(NarrowsError):
    """Somebody asked to stop; the state is saved."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def suggestion(wanted: str, keys: Mapping[str, str]) -> str:
    """A hint with up to three names near to `wanted`, or all; `keys` are names by spelling."""
    left, near = dict(keys), list[str]()
    while len(near) < 3 and (guess := nearest(wanted, left)):
        near.append(keys[guess])
        left = {spelling: key for spelling, key in left.items() if key not in near}
    if not near:
        return f"use one of: {', '.join(dict.fromkeys(keys.values()))}"
    return f"did you mean {' or '.join(near)}?"
