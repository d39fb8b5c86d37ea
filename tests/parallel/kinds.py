"""Which layouts the quick tests look at."""

from __future__ import annotations

from typing import Any

import pytest


def few(kinds: dict[str, dict[str, Any]], *quick: str) -> list[Any]:
    """All of the kinds, slow ones but for the quick."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]
