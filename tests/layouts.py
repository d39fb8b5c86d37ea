"""A small layout, whatever a test says of it."""

from __future__ import annotations

from typing import Any

from narrows.spec.layout import Layout


def layout_of(**given: Any) -> Layout:
    usual: dict[str, Any] = {
        "micro_batch": 1, "accumulation": 1, "precision": "fp32", "recompute": "none",
        "compile": False, "kernels": "torch", "threads": 1, "loss_chunk": 128,
    }  # fmt: skip
    return Layout(**{**usual, **given})
