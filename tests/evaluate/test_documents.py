from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from narrows.data.tokenizers import Tokenizer
from narrows.evaluate.assessment import Found, Manner, Texts
from narrows.evaluate.documents import read, windows
from narrows.evaluate.likelihood import Reader, Reading, pads_exactly
from narrows.evaluate.passes import Passes
from narrows.infer.loading import Generator
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import Experts
from tests.infer.conftest import CONTEXT, TEXT, VOCABULARY, built, spec

TOKENS = torch.randint(VOCABULARY, (400,), generator=torch.Generator().manual_seed(0)).tolist()


def nats_of(model: Transformer, tokens: list[int]) -> Tensor:
    """Of every token but the first, with all logits in memory."""
    logits_TV = model(torch.tensor([tokens[:-1]]))[0].double()
    return -logits_TV.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def found_in(generator: Generator, path: Path, **manner: object) -> Found:
    asked = Manner(**manner)  # type: ignore[arg-type]
    return read(generator, Texts(corpus=str(path)), asked, Passes(generator.model), print)


def metric(found: Found, name: str) -> float:
    (value,) = [each.value for each in found.metrics if each.name == name]
    return value


@given(st.integers(2, 300), st.integers(2, 60), st.integers(1, 60))
def test_every_token_counts_once_behind_enough(tokens: int, context: int, stride: int) -> None:
    stride = min(stride, context)
    counted: list[int] = []
    for window in windows(tokens, 1, context, stride):
        assert 0 <= window.start < window.first < window.stop <= tokens
        assert window.stop - window.start <= context + 1
        # Behind all there is, or all but what the window moved on by.
        assert window.start == 0 or window.first - window.start > context - stride
        counted += range(window.first, window.stop)
    assert counted == list(range(1, tokens))


def test_a_short_text_by_hand(generator: Generator, tmp_path: Path) -> None:
    text = "ROMEO: But, soft!"
    (tmp_path / "a.txt").write_text(text)
    found = found_in(generator, tmp_path / "a.txt")
    ids = generator.tokenizer.encode(text)
    nats = float(nats_of(generator.model, [generator.tokenizer.end_of_document, *ids]).sum())
    assert (found.tokens, found.bytes) == (len(ids), len(text.encode()))
    assert metric(found, "loss") == pytest.approx(nats / len(ids), rel=1e-6)
    assert metric(found, "perplexity") == pytest.approx(math.exp(nats / len(ids)), rel=1e-6)
    assert metric(found, "bits per byte") == pytest.approx(nats / math.log(2) / len(text))


def test_a_window_slides(generator: Generator, tmp_path: Path) -> None:
    """Against each window computed whole."""
    (tmp_path / "a.txt").write_text(TEXT)
    found = found_in(generator, tmp_path / "a.txt", context=32, stride=8)
    tokens = [generator.tokenizer.end_of_document, *generator.tokenizer.encode(TEXT)]
    expected = 0.0
    for first in range(1, len(tokens)):
        # The window that counts it: the first one, else the one that ends next behind it.
        stop = 33 if first < 33 else min(len(tokens), 33 + 8 * ((first - 33) // 8 + 1))
        part = tokens[max(0, stop - 33) : stop]
        expected += float(nats_of(generator.model, part)[first - max(0, stop - 33) - 1])
    assert len(tokens) > 100
    assert found.items[0].sums["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_more_context_is_more_context(generator: Generator, tmp_path: Path) -> None:
    """Stride 1 is each token behind all the model can read."""
    (tmp_path / "a.txt").write_text(TEXT[:150])
    found = found_in(generator, tmp_path / "a.txt", stride=1)
    tokens = [generator.tokenizer.end_of_document, *generator.tokenizer.encode(TEXT[:150])]
    expected = [
        float(nats_of(generator.model, tokens[max(0, stop - CONTEXT - 1) : stop])[-1])
        for stop in range(2, len(tokens) + 1)
    ]
    assert found.items[0].sums["loss"][0] == pytest.approx(sum(expected), rel=1e-5)


def test_bits_per_byte_do_not_depend_on_the_tokenizer(
    character: Tokenizer, bpe: Tokenizer, tmp_path: Path
) -> None:
    """A model that finds all tokens equally likely needs log2 V bits for each, over all bytes."""
    model = built(spec())
    with torch.no_grad():
        model.head_VD.zero_()
    (tmp_path / "a.txt").write_text(TEXT)
    for tokenizer in (character, bpe):
        found = found_in(Generator(model, tokenizer), tmp_path / "a.txt")
        bits = math.log2(VOCABULARY) * len(tokenizer.encode(TEXT)) / len(TEXT.encode())
        assert metric(found, "bits per byte") == pytest.approx(bits)
        assert metric(found, "perplexity") == pytest.approx(VOCABULARY)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_batch_changes_nothing(kind: str) -> None:
    model = built(spec(kind), seed=2)
    readings = [Reading(TOKENS[at : at + 2 + at % 46], 1 + at % 2) for at in range(30)]
    alone, together = (Reader(model, batch).read(readings) for batch in (1, 8))
    for one, eight in zip(alone, together, strict=True):
        assert one.nats == pytest.approx(eight.nats, rel=1e-5)
        assert one.greedy == eight.greedy
    for reading, one in zip(readings, alone, strict=True):
        expected = nats_of(model, list(reading.tokens))[reading.first - 1 :]
        assert one.nats == pytest.approx(float(expected.sum()), rel=1e-5)


def test_experts_with_little_room_are_read_alone() -> None:
    """Padding would make room for tokens that are dropped without it."""
    experts = Experts(count=4, chosen=2, width=32, capacity=0.6)
    model = built(msgspec.structs.replace(spec(), experts=experts))
    assert not pads_exactly(model)
    readings = [Reading(TOKENS[at : at + 9 + at], 1) for at in range(6)]
    alone, together = (Reader(model, batch).read(readings) for batch in (1, 8))
    assert alone == together


def test_greedy_says_whether_the_model_would_have_said_so(generator: Generator) -> None:
    model, tokens = generator.model, TOKENS[:5]
    for _ in range(4):
        tokens = [*tokens, int(model(torch.tensor([tokens]))[0, -1].argmax())]
    other = [*tokens[:-1], (tokens[-1] + 1) % VOCABULARY]
    found = Reader(model, 2).read([Reading(tokens, 5), Reading(other, 5), Reading(other, 8)])
    assert [each.greedy for each in found] == [True, False, False]


def test_documents_are_told_apart(generator: Generator, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(TEXT * (1 + (name == "b")))
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\xff")
    found = found_in(generator, tmp_path)
    assert [each.number for each in found.items] == [1, 2, 3]
    first, second, third = (each.sums["loss"] for each in found.items)
    assert first == pytest.approx(third) and second[0] > 1.5 * first[0]
    assert any("1 left out: empty" in note for note in found.notes)
    assert any("1 left out: not UTF-8 text" in note for note in found.notes)
    assert found.sha256 != found_in(generator, tmp_path, limit=2).sha256
    assert len(found_in(generator, tmp_path, limit=2).items) == 2


def test_characters_that_the_tokenizer_lacks_are_told(
    character: Tokenizer, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "a.txt").write_text("ROMEO ωωω")
    found = found_in(Generator(built(spec()), character), tmp_path / "a.txt")
    assert any("1 of 1 documents do not come back" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "manner", "what"),
    [
        ("", {}, "holds no text"),
        ("some text", {"context": CONTEXT + 1}, "more than the model's 48 positions"),
        ("some text", {"context": 16, "stride": 17}, "would pass over tokens"),
    ],
)
def test_what_cannot_be_is_refused(
    generator: Generator, tmp_path: Path, text: str, manner: dict[str, int], what: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(BadInput, match=what):
        found_in(generator, tmp_path / "a.txt", **manner)


@pytest.mark.parametrize("name", ["batch", "limit", "stride", "tokens"])
def test_nothing_is_asked_for_less_than_once(name: str) -> None:
    with pytest.raises(BadInput, match=f"evaluate.{name} is 0"):
        Manner(**{name: 0})
