"""The packed core keeps the contract of the readable one, to the bit among its own slots."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from narrows.infer.core import Read
from narrows.infer.export import export
from narrows.infer.packed import PackedWriter
from narrows.infer.packed_core import PackedCore
from narrows.infer.requests import Chosen, Piece, Request
from narrows.infer.sampling import Sampling
from narrows.infer.scheduler import Scheduler
from narrows.infer.torch_core import TorchCore
from narrows.infer.writer import load_writer
from narrows.kernels.arrays import Floats
from narrows.kernels.build import obstacle
from narrows.spec.machine import CachePrecision
from narrows.spec.model import llama

from .conftest import CONTEXT, VOCABULARY, MakeRun

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8]


@pytest.fixture
def writer(make_run: MakeRun, tmp_path: Path) -> PackedWriter:
    export(make_run(shape=SHAPE), tmp_path / "out.gguf", type="q8_0", talk=print)
    found = load_writer(tmp_path / "out.gguf")
    assert isinstance(found, PackedWriter)
    return found


def test_slots_share_a_pass_and_say_what_they_say_alone(writer: PackedWriter) -> None:
    core = PackedCore(writer.model, 3, CONTEXT)
    assert (core.vocabulary, core.length(2)) == (VOCABULARY, 0)
    for slot in range(3):
        core.prefill(slot, PROMPT[slot:], 0)
    found_MV = core.decode([2, 0, 1], [11, 7, 12])
    assert [core.length(slot) for slot in range(3)] == [20, 19, 18]
    alone = PackedCore(writer.model, 1, CONTEXT)
    read_V = alone.prefill(0, PROMPT[:5], 0)
    alone.prefill(0, PROMPT[5:], 5)
    assert np.array_equal(alone.decode([0], [7])[0], found_MV[1])
    assert np.array_equal(read_V, writer.decoding(CONTEXT).read(PROMPT[:5]))


@pytest.mark.parametrize("kept", ["bf16", "int8"])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 19])
def test_a_copy_goes_on_as_its_source_and_a_cut_forgets(
    writer: PackedWriter, count: int, kept: CachePrecision
) -> None:
    core = PackedCore(writer.model, 2, CONTEXT, kept)
    core.prefill(1, PROMPT[::-1], 0)
    core.prefill(0, PROMPT, 0)
    core.copy(0, 1, count)
    core.cut(0, count)
    assert core.length(0) == core.length(1) == count
    from_source_V, from_copy_V = (core.prefill(slot, [8, 8, 2], count) for slot in (0, 1))
    assert np.array_equal(from_source_V, from_copy_V)
    core.clear(1)
    assert np.array_equal(core.prefill(1, PROMPT[:count], 0), PackedCore(
        writer.model, 1, CONTEXT, kept
    ).prefill(0, PROMPT[:count], 0))  # fmt: skip


def test_an_int8_cache_says_what_torch_s_says(make_run: MakeRun, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    export(make_run(shape=SHAPE), path, type="q8_0", talk=print)
    by_torch, found = (
        load_writer(path, precision=precision, cache="int8").core(1, CONTEXT)
        for precision in ("fp32", None)
    )
    assert isinstance(by_torch, TorchCore) and isinstance(found, PackedCore)
    whole = load_writer(path).core(1, CONTEXT)
    said = [
        np.stack([each.prefill(0, PROMPT[:9], 0), each.prefill(0, PROMPT[9:18], 9),
                     *each.decode([0], PROMPT[18:])])[:, :VOCABULARY]
        for each in (by_torch, found, whole)
    ]  # fmt: skip
    assert np.linalg.norm(said[1] - said[0]) / np.linalg.norm(said[0]) < 0.03
    assert not np.array_equal(said[1], said[2])
    assert found.cache_bytes == by_torch.cache_bytes == whole.cache_bytes * 36 // 64


@pytest.mark.parametrize("kept", ["bf16", "int8"])
def test_a_conversation_that_goes_on_reads_what_is_new_alone(
    writer: PackedWriter, kept: CachePrecision
) -> None:
    writer.cache = kept
    first = Request(prompt=tuple(PROMPT), tokens_max=9, sampling=Sampling(temperature=0.0))
    core = PackedCore(writer.model, 2, CONTEXT, kept)
    scheduler = Scheduler(core, writer.tokenizer, chunk=8)
    said = "".join(piece.text for piece in scheduler.submit(first))
    follow = (*PROMPT[:17], 5, *PROMPT[:3])
    written = tuple(greedy(writer, list(PROMPT), 8))
    long = Request(prompt=(*PROMPT, *written, 7), tokens_max=3, sampling=first.sampling)
    answer = scheduler.submit(long)
    found = "".join(piece.text for piece in answer)
    assert answer.reused == len(PROMPT) + len(written)
    other = scheduler.submit(Request(prompt=follow, tokens_max=3, sampling=first.sampling))
    beside = "".join(piece.text for piece in other)
    assert other.reused == 17
    scheduler.close()
    for request, text in ((first, said), (long, found), (other.request, beside)):
        fresh = Scheduler(PackedCore(writer.model, 1, CONTEXT, kept), writer.tokenizer)
        assert "".join(piece.text for piece in fresh.submit(request)) == text
        fresh.close()


def test_prompts_fill_half_a_chunk_while_a_text_waits_for_the_step(
    writer: PackedWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = PackedCore(writer.model, 3, CONTEXT)
    begun, asked = threading.Event(), threading.Event()
    step, steps = core.step, list[list[int]]()

    def watched(reads: Sequence[Read]) -> Floats:
        steps.append([len(each.tokens) for each in reads])
        begun.set()
        assert asked.wait(10.0)
        return step(reads)

    monkeypatch.setattr(core, "step", watched)
    scheduler = Scheduler(core, writer.tokenizer, chunk=8)
    requests = [
        Request(prompt=tuple(prompt), tokens_max=6)
        for prompt in (PROMPT[:3], PROMPT[3:8], PROMPT[5:15])
    ]
    answers = [scheduler.submit(requests[0])]
    assert begun.wait(10.0)
    answers += map(scheduler.submit, requests[1:])
    asked.set()
    found = ["".join(piece.text for piece in answer) for answer in answers]
    scheduler.close()
    alone = Scheduler(PackedCore(writer.model, 1, CONTEXT), writer.tokenizer)
    assert found == ["".join(p.text for p in alone.submit(each.request)) for each in answers]
    alone.close()
    assert steps[:5] == [[3], [1, 4], [1, 1, 3], [1, 1, 4], [1, 1, 3]]


@pytest.mark.parametrize("kept", ["bf16", "int8"])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_guesses_change_no_text(
    writer: PackedWriter, temperature: float, kept: CachePrecision
) -> None:
    told, guessed = [], 0
    for speculate in (0, 5):
        core = PackedCore(writer.model, 3, CONTEXT, kept)
        scheduler = Scheduler(core, writer.tokenizer, chunk=20, speculate=speculate)
        # What was said twice is guessed; a penalty counts what was said.
        sampling = Sampling(temperature=temperature, repetition_penalty=1.02, seed=5)
        asked = [
            Request(prompt=(*PROMPT[:8], *PROMPT[:count]), tokens_max=20, sampling=sampling,
                    count=2, logprobs=1) for count in (3, 4, 8)
        ]  # fmt: skip
        told.append([list(scheduler.submit(request)) for request in asked])
        guessed += scheduler.tally.tokens_guessed
        scheduler.close()
    whole, parts = ([pieces_of(each) for each in answers] for answers in told)
    assert whole == parts and guessed > 0


def pieces_of(pieces: list[Piece]) -> dict[int, tuple[str, tuple[Chosen, ...], int]]:
    """Of each choice: its text, odds and tokens."""
    found: dict[int, tuple[str, tuple[Chosen, ...], int]] = {}
    for choice, text, tokens, chosen, _ in pieces:
        so_far = found.get(choice, ("", (), 0))
        found[choice] = (so_far[0] + text, so_far[1] + chosen, so_far[2] + tokens)
    return found


def greedy(writer: PackedWriter, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens behind a prompt."""
    decoding, found, read = writer.decoding(CONTEXT), list[int](), prompt
    for _ in range(count):
        found.append(int(decoding.read(read)[: writer.tokenizer.vocabulary].argmax()))
        read = found[-1:]
    return found
