"""The page: one HTML file that needs nothing but a browser."""

from __future__ import annotations

import re
from pathlib import Path

from narrows.report import comparison, sections, tables, timeline
from narrows.report.comparison import Pair
from narrows.report.document import document
from narrows.report.headline import outcome, sentence, state
from narrows.report.markup import Markup, element
from narrows.report.numbers import show
from narrows.report.run import Run, read
from narrows.report.words import PREDICTED, Phrase
from narrows.spec.record import write_atomically

WORTH_A_WARNING = 0.25
_PARTS = re.compile(r"[\d.,]+|[^\d]+")


def write(run: Path | str) -> Path:
    """Write `report.html` into a run folder; raises BadInput where it is none or not writable."""
    found = read(run)
    page = found.folder / "report.html"
    write_atomically(page, html(found).encode("utf-8", errors="replace"))
    return page


def html(run: Run) -> str:
    """The whole page."""
    return document(run.plan.name, _hero(run), _cards(run), *_parts(run), _foot())


def _hero(run: Run) -> Markup:
    standing, alarming = state(run)
    return element(
        "div",
        element(
            "p",
            element("span", standing, class_="warn" if alarming else None),
            class_="status",
        ),
        element("h1", sentence(run)),
        element("p", outcome(run), class_="aside"),
        class_="hero",
    )


def _cards(run: Run) -> Markup:
    cards = [_card(pair, _basis(run, pair)) for pair in comparison.whole(run)]
    return element("div", cards, class_="cards")


def _card(pair: Pair, basis: Phrase | None) -> Markup:
    """A quantity: measured large, the two as bars, the prediction and its error in words."""
    longest = max(pair.predicted or 0, pair.measured or 0) or 1
    twin = element(
        "div",
        element("i", class_="predicted", style=f"width:{(pair.predicted or 0) / longest:.1%}"),
        element("i", class_="measured", style=f"width:{pair.measured / longest:.1%}")
        if pair.measured and pair.measured > 0
        else None,
        class_="twin",
    )
    large, was, verdict = pair.measured, pair.predicted, pair.verdict
    if pair.measured is None:
        large, was, verdict = pair.predicted, None, Phrase("not measured yet", "尚未实测")
        basis = Phrase(", predicted", "（预测）")
    elif pair.partial:
        verdict = Phrase("so far, unfinished", "截至目前，未完成")
    far = pair.error is not None and abs(pair.error) > WORTH_A_WARNING
    return element(
        "div",
        element("p", pair.label, basis, class_="name"),
        element("p", _large(show(large, pair.unit)), class_="figure"),
        twin,
        element("p", PREDICTED, " ", show(was, pair.unit), class_="was") if was else None,
        element("p", verdict, class_="verdict warn" if far else "verdict"),
        class_="card",
        data_quantity=pair.name,
    )


def _large(value: Phrase) -> list[Markup]:
    """A quantity with its units set smaller than its digits."""
    spoken = (("en", value.en), ("zh-Hans", value.zh))
    return [
        element("span", [_sized(part) for part in _PARTS.findall(text)], lang=language)
        for language, text in spoken
    ]


def _sized(part: str) -> Markup | str:
    return part if part[0].isdigit() else element("small", part)


def _basis(run: Run, pair: Pair) -> Phrase | None:
    ledger = run.measured or run.plan.predicted
    if pair.name == "energy" and ledger.energy_basis == "estimated":
        return Phrase(" (estimated)", "（估算）")
    return None


def _parts(run: Run) -> tuple[Markup | None, ...]:
    wide_first = "columns wide-first"
    return (
        element("div", sections.loss(run), sections.learning_rate(run), class_=wide_first),
        tables.samples(run),
        element("div", sections.time(run), sections.memory(run), class_="columns"),
        timeline.section(run),
        element("div", sections.roofline(run), sections.doubling(run), class_=wide_first),
        tables.choices(run),
        tables.layouts(run),
        element("div", tables.energy(run), tables.events(run), class_="columns"),
        tables.machine(run),
        tables.provenance(run),
    )


def _foot() -> Markup:
    return element(
        "footer",
        Phrase(
            "Written by narrows. An error is predicted / measured − 1. The page loads nothing.",
            "由 narrows 生成。误差 = 预测 ÷ 实测 − 1。本页不加载任何外部内容。",
        ),
    )
