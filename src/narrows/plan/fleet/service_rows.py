"""Rows of a served model's two passes on one device of a replica: a prompt alone, a decode step."""

from __future__ import annotations

from collections.abc import Iterator

from narrows.plan.fleet import here
from narrows.plan.fleet.energy import COMPUTING, MOVING, WAITING, watts
from narrows.plan.fleet.passes import (
    Part,
    Prompt,
    Replica,
    Tokens,
    decode_parts,
    prefill_parts,
    reductions,
    seen,
    served_here,
    starts,
)
from narrows.plan.fleet.serving import Load, Speculation, host_seconds
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.ledger import Kind, Phase, Row


def prefill_rows(work: Work, replica: Replica, load: Load, fleet: Fleet) -> tuple[Row, ...]:
    """A prompt in a pass of its own, computed by what computes prompts."""
    own = load.apart.replica if load.apart else replica
    known = here.prefill_rows(served_here(work, own, fleet), load.new, load.shared)
    if known is not None:
        return known
    parts = prefill_parts(work, own, Prompt(load.new, load.shared), fleet)
    return tuple(_rows(parts, (work, own, fleet), Tokens(load.new, 1.0, 0.0), "prefill"))


def decode_rows(
    work: Work, replica: Replica, load: Load, running: float, fleet: Fleet
) -> tuple[Row, ...]:
    """A step in which `running` requests write; with guesses, these and their check."""
    guess, past = load.speculation, load.prompt + load.answer / 2.0
    each = guess.ahead + 1.0 if guess else 1.0
    host = host_seconds(work, replica, load, running)
    beside = (_row("engine", "decode", "other", host, watts(fleet, WAITING)),)
    rows = here.decode_rows(served_here(work, replica, fleet), running, past, each)
    if rows is None:
        tokens = Tokens(running * each, running, seen(work.spec, past))
        parts = decode_parts(work, replica, tokens, fleet)
        rows = tuple(_rows(parts, (work, replica, fleet), tokens, "decode"))
    if guess is not None:
        rows += (_guessing(work, replica, guess, (running, past), fleet),)
    return (*rows, *beside)


def _rows(
    parts: list[Part], on: tuple[Work, Replica, Fleet], tokens: Tokens, phase: Phase
) -> Iterator[Row]:
    work, replica, fleet = on
    for part in parts:
        if part.seconds > 0.0:
            busy = COMPUTING if part.compute > part.read else MOVING
            yield _row(
                part.name, phase, part.kind, part.seconds, watts(fleet, busy),
                flop=part.flop, memory_bytes=part.bytes,
            )  # fmt: skip
    links, sent = reductions(work, replica, tokens.new, fleet)
    waiting = watts(fleet, WAITING)
    if links > 0.0:
        name = "reductions between ranks"
        yield _row(name, phase, "link", links, waiting, network_bytes=sent, count=2.0 * work.layers)
    host = starts(work, replica, tokens.sequences, fleet)
    yield _row("starting kernels", phase, "launch", host, waiting)


def _guessing(
    work: Work, replica: Replica, guess: Speculation, at: tuple[float, float], fleet: Fleet
) -> Row:
    """All steps of the draft, or of one more block beside the model's."""
    running, past = at
    draft, share = (guess.draft, 1.0) if guess.draft else (work, 1.0 / work.layers)
    often = guess.ahead * share
    tokens = Tokens(running, running, seen(draft.spec, past))
    rows = tuple(
        _rows(
            decode_parts(draft, replica, tokens, fleet), (draft, replica, fleet), tokens, "decode"
        )
    )
    seconds, joules = (sum(getattr(row, name) for row in rows) for name in ("seconds", "joules"))
    on = served_here(draft, replica, fleet)
    if (known := here.seconds(here.decode_rows, on, running, past)) is not None:
        seconds = known
    return Row(
        operation="guesses", phase="decode", kind="other", count=float(guess.ahead),
        flop=often * sum(row.flop for row in rows),
        memory_bytes=often * sum(row.memory_bytes for row in rows),
        network_bytes=often * sum(row.network_bytes for row in rows),
        seconds=often * seconds, joules=often * joules,
    )  # fmt: skip


def _row(
    operation: str, phase: Phase, kind: Kind, seconds: float, power: float, **amounts: float
) -> Row:
    told = {"count": 1.0, "flop": 0.0, "memory_bytes": 0.0, "network_bytes": 0.0, **amounts}
    return Row(
        operation=operation, phase=phase, kind=kind, seconds=seconds, joules=power * seconds, **told
    )  # fmt: skip
