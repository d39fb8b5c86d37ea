"""The HTML around a page's parts: its style, its script, and the policy that lets nothing load."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from narrows.report import palette
from narrows.report.markup import Node, element, verbatim
from narrows.report.words import Phrase


def document(title: str, *parts: Node) -> str:
    """One file that needs nothing but a browser. No script runs but its own."""
    here = Path(__file__).parent
    style = palette.css() + (here / "page.css").read_text(encoding="utf-8")
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} · narrows"),
        element("style", verbatim(style)),
    )
    brand = element("p", element("b", "narrows"), " · ", title, class_="brand")
    toggle = element("button", Phrase("中文", "English"), id="language", type="button")
    body = element(
        "body",
        element("header", brand, toggle),
        element("main", parts),
        element("div", id="tip", role="status", hidden=""),
        element("script", verbatim(script)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"
