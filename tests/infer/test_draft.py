"""A small model's guesses change no text, whatever it says; what it says well comes sooner."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from narrows.data import training
from narrows.data.tokenizers import Tokenizer
from narrows.infer.draft import CHUNK, Draft
from narrows.infer.engine import Room, load_draft, scheduler_of
from narrows.infer.export import export
from narrows.infer.generate import Writer, generate, tokens_of
from narrows.infer.grammar import Grammar, Grammars
from narrows.infer.guessed import Guesser
from narrows.infer.packed import PackedWriter
from narrows.infer.packed_core import PackedCore
from narrows.infer.requests import Request
from narrows.infer.sampling import Sampling
from narrows.infer.scheduler import Scheduler
from narrows.infer.writer import load_writer
from narrows.kernels.build import obstacle
from narrows.spec.errors import BadInput
from narrows.spec.model import llama

from .conftest import TEXT, VOCABULARY, MakeRun, write_run
from .test_packed_core import pieces_of

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
CONTEXT = 400
SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)


@pytest.fixture
def writers(make_run: MakeRun, tmp_path: Path) -> dict[str, PackedWriter]:
    """The same model twice: as well as 8 bits have it, and roughly."""
    run, found = make_run(shape=SHAPE), {}
    for kind in ("q8_0", "q4_0"):
        export(run, tmp_path / f"{kind}.gguf", type=kind, talk=print)
        writer = load_writer(tmp_path / f"{kind}.gguf")
        assert isinstance(writer, PackedWriter)
        found[kind] = writer
    return found


def scheduler(
    writer: Writer, draft: Writer | None, speculate: int = 5, slots: int = 4
) -> Scheduler:
    return scheduler_of(writer, Room(slots, 999, CONTEXT, speculate, draft), print)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_draft_changes_no_text(writers: dict[str, PackedWriter], temperature: float) -> None:
    sampling = Sampling(temperature=temperature, repetition_penalty=1.02, top_p=0.9, seed=5)
    asked = [
        Request(prompt=PROMPT[:count], tokens_max=30, sampling=sampling, count=2, logprobs=1)
        for count in (3, 8, 11)
    ]  # fmt: skip
    told, tally = [], None
    for draft in (None, writers["q4_0"]):
        made = scheduler(writers["q8_0"], draft, speculate=5 if draft else 0)
        told.append([pieces_of(list(made.submit(request))) for request in asked])
        tally = made.tally
        made.close()
    assert told[0] == told[1]
    assert tally and 0 < tally.tokens_guessed_right < tally.tokens_guessed


def test_what_a_model_says_of_itself_is_always_right(writers: dict[str, PackedWriter]) -> None:
    own = writers["q8_0"]
    made = scheduler(own, own, slots=1)
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, seed=9)
        list(made.submit(Request(prompt=PROMPT, tokens_max=31, sampling=sampling)))
    made.close()
    tally = made.tally
    # In each text 1, 2, 4 and three times 5; a pass that ends its text is not counted.
    assert tally.tokens_guessed_right == tally.tokens_guessed == 2 * (1 + 2 + 4 + 3 * 5)


def test_tokens_come_as_often_as_the_model_says(writers: dict[str, PackedWriter]) -> None:
    """Three tokens behind a prompt, 1,500 times: none of the odds is the draft's."""
    large, small, texts = writers["q8_0"], writers["q4_0"], 1500
    sampling = Sampling(temperature=1.0, top_k=3)
    made = scheduler(large, small)
    request = Request(prompt=PROMPT, tokens_max=3, sampling=sampling, count=texts, logprobs=0)
    said = pieces_of(list(made.submit(request)))
    made.close()
    assert made.tally.tokens_guessed > texts / 4
    counts = Counter(tuple(each.itself.token for each in chosen) for _, chosen, _ in said.values())
    assert counts.total() == texts
    bound = 27 + 4 * math.sqrt(2 * 27)
    assert surprise(counts, odds(large, PROMPT, 3), texts) < bound
    assert surprise(counts, odds(small, PROMPT, 3), texts) > 2 * bound


def odds(writer: PackedWriter, prompt: tuple[int, ...], more: int) -> dict[tuple[int, ...], float]:
    """Of each so many tokens that may follow, among the three likeliest each."""
    if more == 0:
        return {(): 1.0}
    logits_V = writer.decoding(CONTEXT).read(prompt)[: writer.tokenizer.vocabulary]
    tokens = np.argsort(-logits_V)[:3]
    values = np.exp(logits_V[tokens].astype(np.float64))
    shares = (values / values.sum()).tolist()
    return {
        (token, *rest): share * other
        for token, share in zip(tokens.tolist(), shares, strict=True)
        for rest, other in odds(writer, (*prompt, token), more - 1).items()
    }


def surprise(counts: Counter[tuple[int, ...]], odds: dict[tuple[int, ...], float], n: int) -> float:
    """Pearson's chi-square; what is rarer than five in all texts counts as one."""
    often = {each: share * n for each, share in odds.items() if share * n >= 5}
    rare = max(1e-3, n - sum(often.values()))
    found = sum((counts[each] - due) ** 2 / due for each, due in often.items())
    return found + (n - sum(counts[each] for each in often) - rare) ** 2 / max(rare, 5.0)


def test_a_long_prompt_is_followed_in_chunks(writers: dict[str, PackedWriter]) -> None:
    large, small = writers["q8_0"], writers["q4_0"]
    long = tuple(torch.randint(200, (CHUNK + 40,), generator=torch.Generator()).tolist())
    request = Request(prompt=long, tokens_max=40, sampling=Sampling(temperature=0.0))
    texts = []
    for draft in (None, small):
        made = scheduler(large, draft, 5 if draft else 0, slots=2)
        answers = [made.submit(request), made.submit(Request(prompt=long[1:], tokens_max=20))]
        texts.append(["".join(piece.text for piece in answer) for answer in answers])
        tally = made.tally
        made.close()
    assert texts[0] == texts[1] and tally.tokens_guessed > 0


def test_a_draft_guesses_within_its_own_context(writers: dict[str, PackedWriter]) -> None:
    large, small = writers["q8_0"], writers["q4_0"]
    core = PackedCore(large.model, 1, CONTEXT)
    draft = Draft(PackedCore(small.model, 1, 24), 5)
    made = Scheduler(core, large.tokenizer, speculate=draft)
    text = list(made.submit(Request(prompt=PROMPT, tokens_max=60)))
    made.close()
    assert sum(piece.tokens for piece in text) > 24 and draft.core.length(0) <= 24


def test_a_grammar_holds_with_guesses(writers: dict[str, PackedWriter]) -> None:
    large, small = writers["q8_0"], writers["q4_0"]
    guide = Grammars(large.tokenizer).guide(Grammar(kind="regex", text="(light|east|sun){3,9}"))
    texts = []
    for draft in (None, small):
        guesser = Guesser(large, CONTEXT, 5, draft)
        writing = guesser.write(PROMPT, 80, sampling=Sampling(seed=2), guide=guide)
        texts.append("".join(writing))
        guesser.close()
    assert texts[0] == texts[1] and set(texts[0]) <= set("lighteastsun")


def test_a_guessed_text_is_the_one_that_generate_writes(writers: dict[str, PackedWriter]) -> None:
    large, sampling = writers["q8_0"], Sampling(seed=4)
    plain = generate(large, "ROMEO: what", tokens=30, sampling=sampling)
    expected = "".join(plain)
    guesser = Guesser(large, CONTEXT, 4, writers["q4_0"])
    writing = guesser.write(tokens_of("ROMEO: what", large), 30, sampling=sampling)
    assert "".join(writing) == expected and plain.guessed is None
    assert (writing.tokens, writing.finish) == (plain.tokens, plain.finish)
    assert len(writing.seconds) == len(plain.seconds) and min(writing.seconds) > 0
    assert writing.guessed.endswith("guessed tokens were right")
    guesser.close()


def test_a_draft_of_other_words_is_refused(
    writers: dict[str, PackedWriter], tmp_path: Path
) -> None:
    other = Tokenizer(training.bpe(TEXT.splitlines()[:1], VOCABULARY))
    (tmp_path / "other").mkdir()
    write_run(tmp_path / "other" / "run", other, SHAPE)
    with pytest.raises(BadInput, match="reads other tokens: .* there, .* here"):
        load_draft(tmp_path / "other" / "run", writers["q8_0"], print)
    assert load_draft(tmp_path / "q4_0.gguf", writers["q8_0"], print).precision == "int4"


def test_what_torch_computes_is_not_guessed(make_run: MakeRun) -> None:
    with pytest.raises(BadInput, match="guesses need the packed decoder"):
        Guesser(load_writer(make_run()), 40, 4)
