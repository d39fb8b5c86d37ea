"""A layout with one technique changed, each alone: what each of them saves and costs."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from narrows.plan.fleet.search import evaluate
from narrows.plan.fleet.spreads import EXCHANGES, PLACEMENTS, RECOMPUTES, SHARDINGS, Spreads
from narrows.plan.fleet.variants import bends
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet, Spread
from narrows.spec.forecast import Option

Change = dict[str, object]


def techniques(work: Work, spread: Spread, fleet: Fleet, limit: float) -> Iterator[Option]:
    """The chosen layout with one technique changed, each alone."""
    changes: list[tuple[str, Change]] = [
        *_others(spread, "recompute", "recompute", RECOMPUTES),
        *_others(spread, "sharding", "shard", SHARDINGS),
        *_others(spread, "kernels", "kernels:", ("eager", "fused", "compiled")),
        ("attention through memory", {"flash_attention": False}),
        ("optimizer states in 8 bits", {"state_bits": 8}),
    ]
    if fleet.host_link is not None:
        changes += _others(spread, "offload", "optimizer offloaded:", ("none", "host", "disk"))
    if spread.tensor > 1:
        changes.append(("no sequence parallelism", {"sequence_parallel": False}))
    if spread.context > 1 and work.spec.heads % (spread.tensor * spread.context) == 0:
        changes += _others(spread, "exchange", "contexts by", EXCHANGES)
    if spread.sharding == "parameters":
        changes += _others(spread, "reshard", "parameters dropped after use:", (True, False))
    if spread.pipeline > 1:
        changes += _others(spread, "placement", "placed", PLACEMENTS)
        bent = [("zero_bubble", 2)] if bends(work, Spreads.of([spread]))[0] else []
        changes += [
            (f"{name} pipeline", {"schedule": name, "interleave": pieces})
            for name, pieces in (("1f1b", 1), ("gpipe", 1), *bent)
            if name != spread.schedule
        ]
    changes = [(what, change) for what, change in changes if _differs(spread, change)]
    now = evaluate(work, Spreads.of([spread]), fleet)
    for what, change in changes:
        other = msgspec.structs.replace(spread, **change)
        found = evaluate(work, Spreads.of([other]), fleet)
        times = float(found.seconds[0] / now.seconds[0])
        verdict = f"{what}: {times:.2f}x the time, {float(found.bytes[0]) / 1e9:.1f} GB"
        verdict += "" if float(found.bytes[0]) <= limit else ", does not fit"
        yield found.option(0, verdict)


def _others(
    spread: Spread, name: str, word: str, known: tuple[object, ...]
) -> list[tuple[str, Change]]:
    """What else a choice may be."""
    own = getattr(spread, name)
    return [
        (f"{word} {str(value).lower().replace('_', ' ')}", {name: value})
        for value in known
        if value != own
    ]


def _differs(spread: Spread, change: Change) -> bool:
    return any(getattr(spread, name) != value for name, value in change.items())
