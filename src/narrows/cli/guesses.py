"""Tokens that are guessed and read along: what generate, chat and serve say of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from narrows.cli import folder, speak
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.infer.generate import Writer
    from narrows.infer.guessed import Guesser

_BY_DRAFT = 4


class Guesses(NamedTuple):
    """At most so many tokens at once, by the model at `draft` or by what was said before."""

    tokens: int
    draft: Path | None

    @contextmanager
    def guesser(self, writer: Writer, context: int) -> Iterator[Guesser | None]:
        """Writes texts of at most so many tokens, where guesses are asked for; raises BadInput
        where the draft does not fit.
        """
        from narrows.infer.guessed import Guesser

        if not self.tokens:
            yield None
            return
        made = Guesser(writer, context, self.tokens, self.writer(writer), speak.talk)
        try:
            yield made
        finally:
            made.close()

    def writer(self, writer: Writer) -> Writer | None:
        """The draft for another, loaded."""
        from narrows.infer.engine import load_draft

        return None if self.draft is None else load_draft(self.draft, writer, speak.talk)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare both."""
    parser.add_argument("--speculate", type=int, metavar="N",
                        help="guess up to N tokens by what was said before, which changes speed "
                        "alone (default 0)")  # fmt: skip
    parser.add_argument("--draft", metavar="MODEL", help="a small model of the same tokenizer "
                        f"that guesses instead (up to N, default {_BY_DRAFT})")  # fmt: skip


def of(chosen: argparse.Namespace) -> Guesses:
    """What was chosen; raises BadInput where it cannot be."""
    draft = None if chosen.draft is None else folder.of_model(chosen.draft)
    tokens = chosen.speculate
    if tokens is None:
        tokens = _BY_DRAFT if draft else 0
    if tokens < (least := int(draft is not None)):
        raise BadInput(f"--speculate is {tokens}", hint=f"at least {least}")
    return Guesses(tokens, draft)
