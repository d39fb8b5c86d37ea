"""The page to talk with the model in a browser."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def page() -> str:
    """One HTML file that needs nothing else."""
    return (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
