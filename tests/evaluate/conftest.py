"""The small models and runs that tests of `infer` make."""

from __future__ import annotations

from tests.infer.conftest import bpe, character, generator, make_run, one_thread

__all__ = ["bpe", "character", "generator", "make_run", "one_thread"]
