"""The report as text for a terminal: predicted beside measured, nothing wider than 88 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from narrows.report import comparison, timeline
from narrows.report.choices import choices
from narrows.report.comparison import Pair
from narrows.report.headline import outcome, sentence, state
from narrows.report.markup import visible
from narrows.report.numbers import percent, show, significant
from narrows.report.run import Run, read
from narrows.report.words import BASES, RESOURCES, Phrase, spoken

WIDTH = 88
_LEVELS = "▁▂▃▄▅▆▇█"
_SPARKS = 60
_SAMPLE_LINES = 12


def text(run: Path | str) -> str:
    """The terminal form of a run; raises BadInput where `run` is not a run folder."""
    found = read(run)
    parts = (
        _opening(found),
        _table("", comparison.whole(found) + comparison.step(found)),
        _curve(found),
        _table("step time by kind", comparison.kinds(found)),
        timeline.sentence(found.timeline).en if found.timeline else "",
        _memory(found),
        _doubling(found),
        _table(f"energy ({_energy_basis(found)})", comparison.spending(found)),
        _choices(found),
        _events(found),
        _sample(found),
        "error = predicted / measured − 1",
    )
    joined = "\n\n".join(part for part in parts if part)
    return visible(joined).replace("\u00a0", " ") + "\n"


def sparkline(values: Sequence[float], width: int = _SPARKS) -> str:
    """Values as one line of blocks, the mean of each stretch; a gap where none is finite."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(place * len(values) / width) for place in range(width + 1)]
    means = [_mean(values[first:last]) for first, last in zip(edges, edges[1:], strict=False)]
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return " " * width
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    top = len(_LEVELS) - 1
    return "".join(
        " " if mean is None else _LEVELS[round((mean - low) / span * top)] for mean in means
    )


def _opening(run: Run) -> str:
    lines = [
        f"{run.plan.name}: {state(run)[0].en}",
        *_wrapped(sentence(run).en),
        *_wrapped(outcome(run).en),
    ]
    return "\n".join(lines)


def _table(title: str, pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    rows = [(title, "predicted", "measured", "error")]
    for pair in pairs:
        far = "so far" if pair.partial and pair.measured is not None else percent(pair.error)
        rows.append(
            (
                pair.label.en,
                show(pair.predicted, pair.unit).en,
                show(pair.measured, pair.unit).en,
                far,
            )
        )
    return "\n".join(
        f"{name:<26}{predicted:>18}{measured:>18}{error:>10}".rstrip()
        for name, predicted, measured, error in rows
    )


def _curve(run: Run) -> str:
    losses = [step.loss for step in run.steps]
    if not losses:
        return ""
    finite = [loss for loss in losses if math.isfinite(loss)]
    ends = (
        f"{significant(finite[0], 4)} to {significant(finite[-1], 4)}" if finite else "not finite"
    )
    lines = [f"loss {ends}", sparkline(losses)]
    if run.evaluations:
        held = [each.validation_loss for each in run.evaluations]
        lines.append(f"validation {' '.join(significant(loss, 4) for loss in held[-8:])}")
    return "\n".join(lines)


def _memory(run: Run) -> str:
    peak = next(pair for pair in comparison.whole(run) if pair.name == "memory")
    return _table("memory at its peak", (*comparison.memory(run), _renamed(peak)))


def _renamed(pair: Pair) -> Pair:
    return Pair(
        name=pair.name,
        label=Phrase("sum", "合计"),
        unit=pair.unit,
        predicted=pair.predicted,
        measured=pair.measured,
    )


def _doubling(run: Run) -> str:
    savings = comparison.savings(run)
    if not savings:
        return ""
    lines = [f"bottleneck: {spoken(RESOURCES, run.plan.bottleneck).en}"]
    for name, saving in savings:
        label = f"  double {spoken(RESOURCES, name).en}"
        lines.append(f"{label:<26}{percent(-saving):>18}")
    return "\n".join(lines)


def _energy_basis(run: Run) -> str:
    return BASES[(run.measured or run.plan.predicted).energy_basis].en


def _choices(run: Run) -> str:
    lines = ["chosen"]
    for choice in choices(run.plan):
        start = f"  {choice.label.en:<18} {choice.value.en:<12} "
        indent = " " * 34
        if len(start) > len(indent):
            lines.append(start.rstrip())
            start = indent
        lines += textwrap.wrap(choice.why.en, WIDTH, initial_indent=start, subsequent_indent=indent)
        if not choice.why.en and start != indent:
            lines.append(start.rstrip())
    return "\n".join(lines)


def _events(run: Run) -> str:
    lines = [
        f"  step {each.step:,}  {each.event}{': ' if each.message else ''}{each.message}"
        for each in run.events
        if each.event != "checkpoint"
    ]
    lines += [f"  {note.en}" for note in run.notes]
    return "\n".join(["events", *lines]) if lines else ""


def _sample(run: Run) -> str:
    if not run.samples:
        return ""
    last = run.samples[-1]
    written = last.prompt + last.text.removeprefix(last.prompt)
    lines = [
        f"  {part}"
        for line in written.splitlines()
        for part in (textwrap.wrap(line, WIDTH - 2) or [""])
    ]
    kept = lines[:_SAMPLE_LINES] + (["  …"] if len(lines) > _SAMPLE_LINES else [])
    return "\n".join([f"sample at step {last.step:,}", *kept])


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH)


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
