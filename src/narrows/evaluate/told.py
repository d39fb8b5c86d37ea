"""An assessment as lines to read: each metric with what chance leaves open, then what differs."""

from __future__ import annotations

from pathlib import Path

from narrows.evaluate.assessment import (
    CONFUSION,
    Assessment,
    Comparison,
    Data,
    Difference,
    Rows,
    Taken,
    Tasks,
    Texts,
    sums,
)
from narrows.infer.account import table
from narrows.spec.units import Bytes, Quantity, Seconds

_TABLE, _LABEL = 12, 12
"""Classes whose confusions fit a line, and letters of each that are shown."""
_SHOWN = 12
"""Answers that are shown; all of them are in the file that --out names."""


def told(assessment: Assessment) -> str:
    """Everything but the single items."""
    lines = [_headline(assessment), *(f"  {note}" for note in assessment.notes), ""]
    width = max(len(metric.name) for metric in assessment.metrics)
    for metric in assessment.metrics:
        around = "" if metric.low is None else f"   {metric.low:.4g} to {metric.high:.4g}"
        lines.append(f"{metric.name:{width}}  {metric.value:10.4f}{around}")
    lines += _confused(assessment)
    if assessment.measured:
        done = "reading" if isinstance(assessment.data, Texts) else "answering"
        predicted = _figures(done, assessment.predicted) if assessment.predicted else None
        lines += ["", table(predicted, _figures(done, assessment.measured))]
    for comparison in assessment.comparisons:
        lines += ["", *_compared(comparison, width)]
    return "\n".join(lines)


def answers(assessment: Assessment) -> str:
    """The first answers that were written or chosen, one a line."""
    said = [each for each in assessment.items if each.answer is not None][:_SHOWN]
    return "\n".join(f"row {each.number}: {' '.join((each.answer or '').split())}" for each in said)


def _headline(assessment: Assessment) -> str:
    where = f" ({assessment.checkpoint})" if assessment.checkpoint else ""
    size = "" if assessment.bytes is None else f", {Bytes(assessment.bytes).text()}"
    rate = assessment.tokens / max(assessment.seconds, 1e-9)
    return (
        f"{assessment.model}{where} on {_name(assessment.data)}: {len(assessment.items):,} "
        f"{_unit(assessment.data)}, {assessment.tokens:,} tokens{size}, {assessment.precision}, "
        f"{Seconds(assessment.seconds).text()}, {rate:,.0f} tokens/s"
    )


def _figures(done: str, taken: Taken) -> dict[str, Quantity]:
    return {done: Seconds(taken.seconds), "memory": Bytes(taken.memory)}


def _confused(assessment: Assessment) -> list[str]:
    """How many rows of each class, one a line, were said to be of each."""
    labels, pairs_MX = assessment.labels, sums(assessment.items, CONFUSION)
    if not labels or not len(pairs_MX) or len(labels) > _TABLE:
        return []
    pairs_CC = pairs_MX.sum(0).reshape(len(labels), len(labels)).astype(int)
    names = [label if len(label) <= _LABEL else label[: _LABEL - 1] + "…" for label in labels]
    wide = max(len(name) for name in (*names, "is, said"))
    head = "  ".join(f"{name:>{wide}}" for name in names)
    rows = [
        f"{name:{wide}}  " + "  ".join(f"{count:{wide},}" for count in row)
        for name, row in zip(names, pairs_CC.tolist(), strict=True)
    ]
    return ["", f"{'is, said':{wide}}  {head}", *rows]


def _compared(comparison: Comparison, width: int) -> list[str]:
    named = f" ({comparison.checkpoint})" if comparison.checkpoint else ""
    lines = [f"against {comparison.against}{named}"]
    for each in comparison.differences:
        lines.append(
            f"{each.metric:{width}}  {each.value:+10.4f}{_around(each)}   {_verdict(each)}"
        )
    lines += [f"{name} is not compared: {why}" for name, why in comparison.left_out.items()]
    return lines


def _around(each: Difference) -> str:
    return "" if each.low is None else f"   {each.low:+.4g} to {each.high:+.4g}"


def _verdict(each: Difference) -> str:
    if each.low is None:
        return "too few items to tell it from chance"
    if each.verdict == "undecided":
        return "no difference beyond chance"
    return f"{each.verdict}: 95 of 100 drawings of items agree on the side"


def _name(data: Data) -> str:
    match data:
        case Texts():
            return data.corpus
        case Rows():
            return Path(data.file).name
        case Tasks():
            return data.task


def _unit(data: Data) -> str:
    return (
        "documents" if isinstance(data, Texts) else "rows" if isinstance(data, Rows) else "samples"
    )
