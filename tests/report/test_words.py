import typing

from narrows.report import words
from narrows.spec.layout import Layout
from narrows.spec.ledger import KINDS, MemoryPeak, Phase
from narrows.spec.machine import Basis


def test_every_name_of_the_records_has_its_words():
    assert set(words.KINDS) == set(KINDS)
    assert set(words.PHASES) == set(typing.get_args(Phase))
    assert set(words.BASES) == set(typing.get_args(Basis))
    assert set(words.MEMORY) == set(MemoryPeak.__struct_fields__) - {"peak"}
    assert set(words.LAYOUT) >= set(Layout.__struct_fields__)
    assert {"placement", "state_bits", "offload", "chunked_loss"} <= set(words.LAYOUT)


def test_phrases_are_filled_each_in_its_language():
    whole = words.Phrase("in {time}", "用时 {time}").filled(time=words.Phrase("5 min", "5 分"))
    assert (whole.en, whole.zh) == ("in 5 min", "用时 5 分")


def test_an_unknown_name_stands_for_itself():
    assert words.spoken(words.KINDS, "gemm").en == "matrix products"
    assert words.spoken(words.RESOURCES, "link_jitter") == words.same("link jitter")
