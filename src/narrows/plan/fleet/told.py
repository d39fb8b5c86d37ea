"""A comparison of a plan and its trace as text for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from narrows.plan.fleet.render import described, wrapped
from narrows.spec.trace import TOLERANCE, Compared, Comparison, Comparisons
from narrows.spec.units import Bytes, Seconds

_MAKERS = 6
"""Operations whose results are named where memory is not explained."""


def text(comparisons: Comparisons) -> str:
    """The whole answer, in blocks parted by blank lines."""
    lines = [wrapped(line) for line in _layout(comparisons.ranks)]
    told = ["\n".join(itertools.chain.from_iterable(lines))]
    for comparison in comparisons.ranks:
        blocks = (_table(comparison), _reasons(comparison), _left(comparison))
        head = "" if len(comparisons.ranks) == 1 else "\n".join(_rank(comparison)) + "\n"
        several = ([line for long in block for line in wrapped(long)] for block in blocks)
        told.append(head + "\n\n".join("\n".join(block) for block in several if block))
    return "\n\n".join(told)


def _layout(several: tuple[Comparison, ...]) -> Iterator[str]:
    first, *others = several
    spread = first.spread
    where = "each kind of stage" if others else f"rank {first.trace.rank}"
    yield f"{first.model_name} on {spread.devices:,} ranks, one step of {where}"
    yield f"  layout   {described(spread)}"
    if not others:
        yield f"  traced   {_traced(first)}"


def _rank(comparison: Comparison) -> Iterator[str]:
    stage, stages = comparison.stage + 1, comparison.spread.pipeline
    yield f"stage {stage} of {stages}, rank {comparison.trace.rank:,}"
    yield f"  traced   {_traced(comparison)}"


def _traced(comparison: Comparison) -> str:
    trace = comparison.trace
    return (
        f"on tensors without memory, in {Seconds(trace.seconds).text()}; "
        f"{Bytes(trace.memory.peak).text()} when memory is fullest"
    )


def _table(comparison: Comparison) -> Iterator[str]:
    yield f"{'':24}{'planned':>16}{'traced':>16}{'':>9}{'named':>9}{'left':>9}   collectives"
    for row in comparison.rows:
        base = max(abs(row.planned), abs(row.traced)) or 1.0
        named = sum(reason.amount for reason in row.reasons) / base
        counts = ""
        if row.planned_count or row.traced_count:
            counts = f"{row.planned_count:,.0f} and {row.traced_count:,.0f}"
        line = (
            f"  {row.quantity:22}{_amount(row, row.planned):>16}{_amount(row, row.traced):>16}"
            f"{(row.traced - row.planned) / base:+9.1%}{named:+9.1%}{row.rest / base:+9.1%}"
            f"   {counts}"
        )
        yield line.rstrip()


def _reasons(comparison: Comparison) -> Iterator[str]:
    """Of differences beyond the tolerance."""
    for row in comparison.rows:
        base = max(abs(row.planned), abs(row.traced))
        if abs(row.traced - row.planned) <= TOLERANCE * base:
            continue
        yield f"{row.quantity}: {(row.traced - row.planned) / base:+.1%} of what is larger"
        for reason in row.reasons:
            if abs(reason.amount) > 0.001 * base:
                yield f"  {reason.amount / base:+8.1%}  {reason.name}"


def _left(comparison: Comparison) -> Iterator[str]:
    """What no formula explains, and what lives then, by the operation that made it."""
    open_rows = [row.quantity for row in comparison.rows if not row.settled]
    if not open_rows:
        yield f"all differences are explained to within {TOLERANCE:.0%}"
        return
    yield f"not explained to within {TOLERANCE:.0%} by formulas: {', '.join(open_rows)}"
    trace = comparison.trace
    if "what comes and goes" in open_rows:
        yield "what is alive when memory is fullest, by the operation that made it"
        for name, size in list(trace.makers.items())[:_MAKERS]:
            yield f"  {Bytes(size).text():>10}  {name}"


def _amount(row: Compared, value: float) -> str:
    return Bytes(value).text() if row.unit == "B" else f"{value:.3g} FLOP"
