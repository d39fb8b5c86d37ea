from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.evaluate import overlap

VOCABULARY = ("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "7", ".")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=14)
PAIRS = [
    ("The cat sat on the mat.", "The cat sat on a mat."),
    ("Paris", "It is Paris, of course."),
    ("one two three four five", "five four three two one"),
    ("something else", ""),
]


def test_matches() -> None:
    assert overlap.exact("Paris", " Paris\n") and not overlap.exact("Paris", "paris")
    assert overlap.relaxed("Paris!", "paris") and not overlap.relaxed("Paris", "London")
    assert overlap.exact("caf\u00e9", "cafe\u0301")


def test_rouge_by_hand() -> None:
    found = overlap.rouge("the cat sat on the mat", "the cat lay on a mat")
    # 4 words, 1 pair and a subsequence of 4 are shared; 6 words and 5 pairs each.
    assert found["rouge1"] == pytest.approx(8 / 12)
    assert found["rouge2"] == pytest.approx(2 / 10)
    assert found["rougeL"] == pytest.approx(8 / 12)


def test_rouge_reads_ideographs_one_by_one() -> None:
    assert overlap.words("我爱 Python3！") == ["我", "爱", "python3"]
    assert overlap.rouge("我爱北京", "我爱上海")["rouge1"] == pytest.approx(0.5)
    assert overlap.rouge("Où", "où")["rouge1"] == 1.0


@given(WORDS, WORDS)
@settings(max_examples=80, deadline=None)
def test_rouge_equals_googles_on_english(first: list[str], second: list[str]) -> None:
    theirs: Any = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = theirs.RougeScorer(["rouge1", "rouge2", "rougeL"])
    expected = scorer.score(" ".join(first), " ".join(second))
    found = overlap.rouge(" ".join(first), " ".join(second))
    for name, share in found.items():
        assert share == pytest.approx(expected[name].fmeasure), name


def test_sums_over_rows_are_the_corpus_scores() -> None:
    metrics: Any = pytest.importorskip("sacrebleu.metrics")
    expected, answers = zip(*PAIRS, strict=True)
    sums = np.sum([overlap.bleu_sums(*pair, "13a") for pair in PAIRS], axis=0)
    whole = metrics.BLEU().corpus_score(answers, [expected]).score
    assert overlap.bleu(sums) == pytest.approx(whole) and whole > 5
    sums = np.sum([overlap.chrf_sums(*pair) for pair in PAIRS], axis=0)
    whole = metrics.CHRF().corpus_score(answers, [expected]).score
    assert overlap.chrf(sums) == pytest.approx(whole) and whole > 20


def test_chinese_is_cut_by_characters() -> None:
    pytest.importorskip("sacrebleu")
    assert overlap.cut_for(["今天天气很好。"]) == "zh"
    assert overlap.cut_for(["Berlin", "北京"]) == "13a"
    assert overlap.bleu(overlap.bleu_sums("今天天气很好", "今天天气很好", "zh")) == pytest.approx(
        100
    )
