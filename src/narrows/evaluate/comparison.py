"""Two assessments of the same data: what differs by more than chance."""

from __future__ import annotations

from typing import Literal

from narrows.evaluate.assessment import Assessment, Comparison, Difference, Metric, sums
from narrows.evaluate.bootstrap import Interval, paired_interval
from narrows.spec.errors import BadInput

_BY_TOKEN = ("loss", "perplexity")
_ASKED = ("context", "stride", "tokens", "stop", "joint", "sampling")
"""What of a manner changes the numbers; how exactly a model computes may be what is compared."""


def compared(first: Assessment, second: Assessment) -> Comparison:
    """The differences of every metric that both have.

    Raises BadInput where the two were not asked the same in the same way.
    """
    _refuse_unlike(first, second)
    differences, left_out = [], dict[str, str]()
    there = {metric.name: metric for metric in second.metrics}
    for metric in first.metrics:
        if metric.name in _BY_TOKEN and first.tokens != second.tokens:
            left_out[metric.name] = "the models cut the text into other tokens"
        elif metric.name not in there:
            left_out[metric.name] = f"{second.model} was not asked for it"
        elif metric.form is None:
            left_out[metric.name] = "no item tells what it adds"
        else:
            other = there[metric.name]
            around = paired_interval(
                metric.form, sums(first.items, metric.name), sums(second.items, metric.name),
                first.manner.seed,
            )  # fmt: skip
            differences.append(_difference(metric, other, around))
    return Comparison(
        against=second.model, checkpoint=second.checkpoint, differences=tuple(differences),
        left_out=left_out,
    )  # fmt: skip


def _difference(metric: Metric, other: Metric, around: Interval | None) -> Difference:
    verdict: Literal["better", "worse", "undecided"] = "undecided"
    if around is not None and (around.low > 0.0 or around.high < 0.0):
        verdict = "better" if (around.low > 0.0) == (metric.better == "higher") else "worse"
    return Difference(
        metric=metric.name, first=metric.value, second=other.value,
        value=metric.value - other.value, low=around and around.low, high=around and around.high,
        verdict=verdict,
    )  # fmt: skip


def _refuse_unlike(first: Assessment, second: Assessment) -> None:
    if first.sha256 != second.sha256:
        raise BadInput(
            f"{first.model} and {second.model} were asked about other data",
            causes=[f"{each.model}: {_told(each)}" for each in (first, second)],
            hint="evaluate both on the same file, with the same --limit",
        )
    if [each.number for each in first.items] != [each.number for each in second.items]:
        what = f"{first.model} and {second.model} answered other rows of the same data"
        raise BadInput(what, hint="evaluate both with the same options")
    unlike = [name for name in _ASKED
              if getattr(first.manner, name) != getattr(second.manner, name)]  # fmt: skip
    if unlike:
        differ = f"{' and '.join(unlike)} differ"
        what = f"{first.model} and {second.model} were not asked alike: {differ}"
        raise BadInput(what, hint="evaluate both with the same options")


def _told(each: Assessment) -> str:
    return f"{len(each.items)} items, sha256 {each.sha256[:12]}"
