"""How quick a server will be, said before it is asked, and how quick it was, said after."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from narrows.infer.account import machine_known_for, predicted_answer
from narrows.infer.generate import Writer
from narrows.infer.tally import Tally
from narrows.spec.units import Seconds

UNKNOWN = "how quick that is was not predicted: narrows probe --refresh"
_PROMPT, _ANSWER = 256, 128


class Asked(NamedTuple):
    """Tokens of a request and of its answer: the usual ones, where nobody has asked yet."""

    prompt: int = _PROMPT
    answer: int = _ANSWER

    @staticmethod
    def mean(tally: Tally) -> Asked | None:
        """Of all answers so far; None where there are none."""
        answers = sum(tally.first.counts)
        if not answers:
            return None
        read = tally.tokens_read + tally.tokens_reused
        return Asked(max(1, read // answers), max(1, tally.tokens_written // answers))


class Speed(NamedTuple):
    """Of so many texts written at once: seconds to the first token of one that nobody delays, and
    between two tokens of each.
    """

    texts: int
    first_token_s: float
    per_token_s: float

    def __str__(self) -> str:
        first, each = Seconds(self.first_token_s).text(), Seconds(self.per_token_s).text()
        texts = f"{self.texts} text{'s'[: self.texts > 1]} at once"
        rate = f"{self.texts / self.per_token_s:,.0f} tokens/s" if self.per_token_s else "no more"
        return f"{texts}: first token {first}, each more {each} ({rate})"


def speeds(writer: Writer, path: Path, slots: int, asked: Asked) -> list[Speed]:
    """Predicted, of one text and of as many as there are slots; nothing where this machine was not
    probed for such weights.
    """
    machine, context = machine_known_for(path), writer.spec.context
    if machine is None:
        return []
    prompt = min(asked.prompt, context - 1)
    answer = min(asked.answer, context - prompt)
    alone = predicted_answer(writer, machine, prompt, answer)
    together = predicted_answer(writer, machine, prompt, answer, slots)
    if alone is None or together is None:
        return []
    first = alone.first_token_s
    found = [Speed(1, first, alone.per_token_s), Speed(slots, first, together.per_token_s)]
    return found[: 1 + (slots > 1)]


def predicted(found: list[Speed], asked: Asked) -> str:
    """As lines."""
    if not found:
        return UNKNOWN
    of = f"predicted, {asked.prompt} tokens answered by {asked.answer}"
    return "\n".join(f"{of}, {each}" for each in found)


def measured(tally: Tally) -> str:
    """What came of it, as a line."""
    firsts, gaps = sum(tally.first.counts), sum(tally.each.counts)
    said = f"measured, {firsts} answers"
    for what, sum_s, count in (
        ("first token", tally.first.sum_s, firsts), ("each more", tally.each.sum_s, gaps),
    ):  # fmt: skip
        if count:
            said += f", {what} {Seconds(sum_s / count).text()}"
    return said + " (means, waiting included)"
