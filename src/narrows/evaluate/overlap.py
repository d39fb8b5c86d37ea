"""How much of an answer is in the one that was expected: exact match, ROUGE, BLEU and chrF.

BLEU and chrF are sacrebleu's. What one row adds to them is kept apart, since both are functions of
sums over rows, so that a bootstrap need not read the texts again. ROUGE is ours (decision 14).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

Cut = Literal["13a", "zh"]
"""How BLEU finds words, by sacrebleu's names."""

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(f"[{_IDEOGRAPHS}]|[^\\W_{_IDEOGRAPHS}]+")
_LETTERS = re.compile(r"[^\W\d_]")
_PUNCTUATION = {ord(each): " " for each in string.punctuation}


def exact(expected: str, answer: str) -> bool:
    """Whether both are the same but for white space at their ends."""
    return unicodedata.normalize("NFC", expected.strip()) == unicodedata.normalize(
        "NFC", answer.strip()
    )


def relaxed(expected: str, answer: str) -> bool:
    """Whether both have the same words, whatever their case and punctuation."""
    return _plain(expected) == _plain(answer)


def rouge(expected: str, answer: str) -> dict[str, float]:
    """F1 of the single words, the pairs and the longest common subsequence (Lin 2004).

    Words are runs of letters and digits in lower case, and each ideograph; no stemming.
    """
    a, b = words(expected), words(answer)
    common = _longest_common(a, b)
    return {
        "rouge1": _f1(*_shared(a, b, 1)),
        "rouge2": _f1(*_shared(a, b, 2)),
        "rougeL": _f1(common, len(a), len(b)),
    }


def words(text: str) -> list[str]:
    """The words that ROUGE counts."""
    return _WORDS.findall(text.lower())


def cut_for(expected: Sequence[str]) -> Cut:
    """By characters where most letters that are expected are ideographs, else by words."""
    letters = [each for text in expected for each in _LETTERS.findall(text)]
    ideographs = sum(bool(re.match(f"[{_IDEOGRAPHS}]", each)) for each in letters)
    return "zh" if ideographs * 2 > len(letters) else "13a"


def bleu_sums(expected: str, answer: str, cut: Cut) -> list[float]:
    """What a row adds to BLEU: two lengths, then n-grams matched, and n-grams written."""
    return _sums(_bleu(cut), expected, answer)


def chrf_sums(expected: str, answer: str) -> list[float]:
    """What a row adds to chrF: n-grams written, expected and matched, for each n."""
    return _sums(_chrf(), expected, answer)


def bleu(sums: Iterable[float]) -> float:
    """BLEU, 0 to 100, of rows that add up to `sums`."""
    return float(_bleu("13a")._compute_score_from_stats([round(each) for each in sums]).score)


def chrf(sums: Iterable[float]) -> float:
    """chrF2, 0 to 100, of rows that add up to `sums`."""
    return float(_chrf()._compute_score_from_stats([round(each) for each in sums]).score)


@cache
def _bleu(cut: Cut) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=cut)


@cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _sums(metric: Any, expected: str, answer: str) -> list[float]:
    (row,) = metric._extract_corpus_statistics([answer], [[expected]])
    return [float(each) for each in row]


def _plain(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return folded.translate(_PUNCTUATION).split()


def _shared(a: list[str], b: list[str], n: int) -> tuple[int, int, int]:
    """How many runs of n words are in both, in the one and in the other."""
    first, second = (Counter(zip(*(each[i:] for i in range(n)), strict=False)) for each in (a, b))
    return (first & second).total(), first.total(), second.total()


def _longest_common(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for left in a:
        before = 0
        for place, right in enumerate(b, 1):
            above = row[place]
            row[place] = before + 1 if left == right else max(above, row[place - 1])
            before = above
    return row[-1]


def _f1(shared: int, first: int, second: int) -> float:
    return 2.0 * shared / (first + second) if shared else 0.0
