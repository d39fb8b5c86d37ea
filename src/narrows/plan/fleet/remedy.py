"""What single change makes a job fit that does not, the smallest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from narrows.plan.fleet.best import best_alone
from narrows.plan.fleet.dial import Pace, bought
from narrows.plan.fleet.failures import goodput
from narrows.plan.fleet.memory import peak
from narrows.plan.fleet.optimizer import overfills_host
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.search import MEMORY_SHARE, Found
from narrows.plan.fleet.structures import candidates
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import counted
from narrows.spec.forecast import Option as Laid

Option = Literal["set", "context", "tune", "machine"]
Change = tuple[Option, str]
"""An option of the command line and its value."""
Changed = Callable[[Change], Question]
"""The question with one change; raises BadInput where there is no such question."""

_FIXED = (
    "recompute", "sharding", "micro_batch", "tensor", "pipeline", "interleave", "schedule",
    "context", "expert",
)  # fmt: skip
_CONTEXT_LEAST = 512
_DOUBLINGS = 12
# Of each kind: what is left out costs more and helps no more.
_MOST = 3


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """A change after which the job fits, and the pace and the memory of its best layout then."""

    change: Change
    tokens_per_s: float
    devices: int
    memory_bytes: float


def remedies(question: Question, changed: Changed, roomier: Sequence[str]) -> list[Remedy]:
    """What is cheapest first of each kind: another layout of the same training, other machines
    (more of the same, or the first of the `roomier`), then another training.
    """
    kinds = (
        _layouts(question.wanted, changed), _machines(question, changed, roomier),
        _trainings(question, changed),
    )  # fmt: skip
    found: list[Remedy] = []
    for changes in kinds:
        fitting = [each for change in changes if (each := _tried(change, changed)) is not None]
        fitting.sort(key=lambda remedy: remedy.devices / remedy.tokens_per_s)
        found += fitting[:_MOST]
    return found


def _layouts(wanted: Wanted, changed: Changed) -> Iterator[Change]:
    """What was fixed set to what is best where it is not, then what no search varies."""
    for name in _FIXED:
        if getattr(wanted, name) is not None and (value := _freed(name, changed)) is not None:
            yield "set", f"layout.{name}={value}"
    if wanted.offload == "none":
        yield "set", "layout.offload=host"
    if not wanted.chunked_loss:
        yield "set", "layout.chunked_loss=true"
    if wanted.state_bits > 8:
        yield "set", "layout.state_bits=8"


def _freed(name: str, changed: Changed) -> object:
    """The value of one choice in the best layout that fits where only it is left open."""
    best = _best(("set", f"layout.{name}="), changed)
    return None if best is None else getattr(best.laid.spread, name)


def _machines(question: Question, changed: Changed, roomier: Sequence[str]) -> Iterator[Change]:
    """The fewest more devices, and the smallest larger one, in whose memory some layout fits."""
    devices, what = question.fleet.devices, counted(question.fleet.name)[-1]
    more = [f"{devices << power}x{what}" for power in range(1, _DOUBLINGS + 1)]
    if question.fleet.architecture == "here":
        more = []
    for names in (more, roomier):
        if name := next((each for each in names if _holds(each, changed)), None):
            yield "machine", name


def _trainings(question: Question, changed: Changed) -> Iterator[Change]:
    wanted = question.wanted
    if wanted.trained == 1.0:
        yield "tune", "lora"
    if wanted.stored_bits is None:
        yield "tune", "qlora"
    context = question.model.context // 2
    while context >= _CONTEXT_LEAST:
        if _tried(("context", str(context)), changed):
            yield "context", str(context)
            return
        context //= 2


def _tried(change: Change, changed: Changed) -> Remedy | None:
    """None where nothing fits even so."""
    best = _best(change, changed)
    if best is None:
        return None
    question, laid = best
    tokens = question.batch * question.model.context
    return Remedy(
        change=change, tokens_per_s=tokens / laid.step_seconds,
        devices=question.fleet.devices, memory_bytes=laid.memory_peak,
    )  # fmt: skip


class _Best(NamedTuple):
    question: Question
    laid: Laid


def _best(change: Change, changed: Changed) -> _Best | None:
    """The changed question and its best layout; None where it cannot be asked, nothing fits, or the
    budget is over before a step.
    """
    try:
        question = changed(change)
    except BadInput:
        return None
    found = _found(question)
    chosen = None if found is None else found.best(question.goal)
    if found is None or chosen is None:
        return None
    work, best = Work.of(question.model, question.model.context), found.option(chosen)
    kept = goodput(work, question.fleet, question.wanted.trained).share
    tokens = float(question.batch * work.positions)
    try:
        bought(question, Pace.of(found, chosen, question.fleet, tokens, kept))
    except BadInput:
        return None
    return None if overfills_host(work, best.spread, question.fleet) else _Best(question, best)


def _found(question: Question) -> Found | None:
    try:
        work = Work.of(question.model, question.model.context)
        return best_alone(work, question.fleet, question.batch, question.wanted, question.goal)
    except BadInput:
        return None


def _holds(name: str, changed: Changed) -> bool:
    """Whether some layout fits, by its memory alone."""
    try:
        question = changed(("machine", name))
        work = Work.of(question.model, question.model.context)
        spreads = candidates(work, question.fleet, question.batch, question.wanted)
    except BadInput:
        return False
    limit = MEMORY_SHARE * float(question.fleet.memory_capacity.value)
    return float(peak(work, spreads).min()) <= limit
