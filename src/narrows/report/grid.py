"""Tables of numbers."""

from __future__ import annotations

from narrows.report.markup import Markup, Node, element
from narrows.report.words import Phrase


def row(name: Phrase, *values: Node, first: bool = False) -> Markup:
    """A name and its numbers; `first` in bold."""
    cells = [element("td", value, class_="number") for value in values]
    return element("tr", element("th", name, scope="row"), cells,
                   class_="first" if first else None)  # fmt: skip


def table(
    heads: tuple[Phrase, ...], rows: list[Markup], *, words: tuple[int, ...] = (0,)
) -> Markup:
    """Columns hold numbers but for those at `words`."""
    cells = [
        element("th", head, scope="col", class_=None if place in words else "number")
        for place, head in enumerate(heads)
    ]
    head = element("thead", element("tr", cells))
    return element("div", element("table", head, element("tbody", rows)), class_="scroll")
