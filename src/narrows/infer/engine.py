"""A model's engine: the core that computes it and the scheduler that its requests go through.

scheduler_of(writer, Room(slots=8, queue=64, context=2048), talk) → Scheduler
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from narrows.infer.draft import Draft
from narrows.infer.generate import Writer
from narrows.infer.ready import named
from narrows.infer.scheduler import GUESSING, Scheduler
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision

Talk = Callable[[str], None]


class Room(NamedTuple):
    """How much it takes on at once, each text of so many positions; at most `speculate` tokens of
    each are guessed, by the model `draft` where there is one, else by what was said before.
    """

    slots: int
    queue: int
    context: int
    speculate: int = 0
    draft: Writer | None = None


def scheduler_of(writer: Writer, room: Room, talk: Talk) -> Scheduler:
    """Running; raises BadInput where guesses are asked for that would change texts."""
    core = writer.core(room.slots, room.context)
    if room.speculate and not core.alike:
        raise BadInput(
            f"guesses need the packed decoder, and this model is computed by torch in "
            f"{writer.precision}, whose rows are not the same one by one and together",
            hint="narrows export it to a GGUF file and give that, or leave guesses out",
        )
    speculate: int | Draft = room.speculate
    if room.draft:
        slots, context = min(room.slots, GUESSING), min(room.context, room.draft.spec.context)
        speculate = Draft(room.draft.core(slots, context), room.speculate)
    return Scheduler(core, writer.tokenizer, queue=room.queue, speculate=speculate, talk=talk)


def load_draft(path: Path, writer: Writer, talk: Talk) -> Writer:
    """The model that guesses for another, its cache in int8 if that one's is; raises BadInput where
    it reads other tokens.
    """
    cache: CachePrecision | None = "int8" if writer.cache == "int8" else None
    found = named(path, None, talk).writer(cache=cache, talk=talk)
    other = writer.tokenizer.differs(found.tokenizer)
    if other is not None:
        own, theirs = (each.tokenizer.text_of(other) for each in (writer, found))
        raise BadInput(
            f"the draft {path} reads other tokens: {other} is {theirs!r} there, {own!r} here",
            hint="a smaller model of the same family, which has the same tokenizer",
        )
    return found
