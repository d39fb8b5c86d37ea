from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from narrows.infer.generate import generate
from narrows.infer.loading import Generator
from narrows.infer.requests import Answer, Closed, Full, Piece, Request
from narrows.infer.sampling import Sampling
from narrows.infer.scheduler import Scheduler
from narrows.infer.torch_core import TorchCore
from narrows.spec.errors import BadInput, RunFailed

from .conftest import CONTEXT

CHUNK = 4
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3)
Make = Callable[..., Scheduler]


@pytest.fixture
def make(generator: Generator) -> Iterator[Make]:
    """Makes schedulers, closed at the end."""
    made: list[Scheduler] = []

    def scheduler(slots: int = 4, **options: Any) -> Scheduler:
        core = TorchCore(generator.model, slots)
        made.append(Scheduler(core, generator.tokenizer, chunk=CHUNK, **options))
        return made[-1]

    yield scheduler
    for each in made:
        each.close()


@dataclass
class Gate:
    """Holds every pass through the model until it is opened, or fails it."""

    open: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    reads: list[int] = field(default_factory=list)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made, before = Gate(), TorchCore.prefill

    def gated(core: TorchCore, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        made.reached.set()
        assert made.open.wait(20.0)
        made.reads.append(len(tokens))
        if made.error is not None:
            error, made.error = made.error, None
            raise error
        return before(core, slot, tokens, start)

    monkeypatch.setattr(TorchCore, "prefill", gated)
    yield made
    made.open.set()


def request(prompt: Sequence[int] = PROMPT, tokens_max: int = 12, **options: Any) -> Request:
    return Request(prompt=tuple(prompt), tokens_max=tokens_max, **options)


def texts(answer: Answer) -> list[tuple[str, int, str | None]]:
    """Of each choice: its text, how many tokens, and why it ended."""
    pieces: list[Piece] = list(answer)
    found = []
    for choice in range(answer.request.count):
        own = [piece for piece in pieces if piece.choice == choice]
        assert [piece.finish is not None for piece in own] == [False] * (len(own) - 1) + [True]
        text, count = "".join(each.text for each in own), sum(each.tokens for each in own)
        found.append((text, count, own[-1].finish))
    return found


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.002)


def test_it_writes_what_generate_writes(make: Make, generator: Generator) -> None:
    sampling = Sampling(seed=5)
    prompt = generator.tokenizer.encode("ROMEO: what light")
    [(text, count, finish)] = texts(make().submit(request(prompt, 20, sampling=sampling)))
    wanted = generate(generator, "ROMEO: what light", tokens=20, sampling=sampling)
    assert text == "".join(wanted)
    assert (count, finish) == (wanted.tokens, wanted.finish)


def mixed() -> list[Request]:
    """Sixteen requests of different prompts, lengths, seeds and ways, some with one beginning."""
    made = []
    for n in range(16):
        prompt = (*PROMPT, n, n + 1) if n % 2 else tuple(range(n, n + 2 * n + 3))
        sampling = Sampling(
            temperature=0.0 if n % 5 == 0 else 0.9, top_k=20 if n % 3 else None, seed=n,
            repetition_penalty=1.2 if n % 4 == 0 else 1.0, frequency_penalty=0.5 if n == 7 else 0.0,
        )  # fmt: skip
        count = 2 if n == 6 else 1
        stop = ("e",) if n == 9 else ()
        made.append(request(prompt[:30], 5 + n % 9, sampling=sampling, stop=stop, count=count))
    return made


def test_sixteen_at_once_are_answered_as_each_alone(make: Make) -> None:
    together = make(slots=5)
    answers = [together.submit(each) for each in mixed()]
    found = [texts(answer) for answer in answers]
    for n, each in enumerate(mixed()):
        assert found[n] == texts(make(slots=1).submit(each)), n
    assert together.tally.requests["finished"] == 16
    assert together.tally.tokens_reused > 0


def test_logits_are_equal_to_the_bit_after_a_reused_beginning(
    make: Make, generator: Generator
) -> None:
    odds: dict[str, Any] = {"tokens_max": 6, "logprobs": 3, "sampling": Sampling(temperature=0.0)}
    warm = make(slots=2)
    list(warm.submit(request((*PROMPT, 7, 7, 7), **odds)))
    again = warm.submit(request((*PROMPT, 8, 8), **odds))
    warmed = [piece.chosen for piece in again]
    fresh = [piece.chosen for piece in make(slots=1).submit(request((*PROMPT, 8, 8), **odds))]
    assert again.reused == len(PROMPT) // CHUNK * CHUNK
    assert warmed == fresh


def test_the_same_prompt_is_read_once(make: Make) -> None:
    scheduler = make(slots=3)
    answer = scheduler.submit(request(count=3, sampling=Sampling(seed=11)))
    three = texts(answer)
    assert scheduler.tally.tokens_read == len(PROMPT)
    assert len({text for text, _, _ in three}) > 1
    alone = [texts(scheduler.submit(request(sampling=Sampling(seed=11 + n))))[0] for n in range(3)]
    assert three == alone


def test_long_prompts_are_read_in_chunks_between_the_tokens_of_others(
    make: Make, gate: Gate
) -> None:
    scheduler = make()
    first = scheduler.submit(request(PROMPT[:3], 9))
    long = scheduler.submit(request(tuple(range(20)), 2))
    gate.open.set()
    texts(first), texts(long)
    assert [count for count in gate.reads if count > 1] == [3, 4, 4, 4, 4, 4]
    at = [place for place, count in enumerate(gate.reads) if count == 4]
    assert all(later - earlier > 1 for earlier, later in zip(at[1:], at[2:], strict=False))


def test_log_probabilities_are_the_models_own(make: Make, generator: Generator) -> None:
    sampling = Sampling(temperature=0.0, logit_bias={40: 100.0})
    pieces = list(make().submit(request(tokens_max=1, logprobs=2, sampling=sampling)))
    [chosen] = [each for piece in pieces for each in piece.chosen]
    logits_V = generator.model(torch.tensor([PROMPT]))[0, -1, : generator.tokenizer.vocabulary]
    odds_V = logits_V.double().log_softmax(-1)
    assert chosen.itself.token == 40
    assert chosen.itself.logprob == pytest.approx(float(odds_V[40]), abs=1e-4)
    assert [each.token for each in chosen.likeliest] == odds_V.topk(2).indices.tolist()


def test_cancelling_frees_the_slot_and_the_next_goes_on(make: Make, gate: Gate) -> None:
    scheduler = make(slots=1)
    first, second = (scheduler.submit(request(sampling=Sampling(seed=n))) for n in (1, 2))
    third = scheduler.submit(request(sampling=Sampling(seed=3)))
    assert gate.reached.wait(10.0)
    first.cancel()
    second.cancel()
    gate.open.set()
    alone = texts(make(slots=1).submit(request(sampling=Sampling(seed=3))))
    assert texts(third) == alone
    assert list(first) == [] and len(gate.reads) < 3 * (len(PROMPT) // CHUNK + 12)
    assert scheduler.tally.requests["cancelled"] == 2


def test_more_than_may_wait_is_refused(make: Make, gate: Gate) -> None:
    scheduler = make(slots=1, queue=1)
    answers = [scheduler.submit(request(tokens_max=2)) for _ in range(2)]
    with pytest.raises(Full, match="1 requests are being answered and 1 wait"):
        scheduler.submit(request())
    gate.open.set()
    assert [texts(answer)[0][1] for answer in answers] == [2, 2]
    until(lambda: scheduler.running == 0)
    assert texts(scheduler.submit(request(tokens_max=2)))[0][1] == 2


def test_a_worker_that_dies_is_replaced_and_nobody_waits_for_ever(make: Make, gate: Gate) -> None:
    said: list[str] = []
    scheduler = make(slots=1, talk=said.append)
    gate.error = MemoryError("no more")
    lost = scheduler.submit(request())
    kept = scheduler.submit(request(tokens_max=3))
    gate.open.set()
    with pytest.raises(RunFailed, match="engine failed"):
        list(lost)
    assert texts(kept)[0][1] == 3
    assert scheduler.alive and scheduler.tally.restarts == 1
    assert said == ["the worker died and is restarted: MemoryError: no more"]


def test_one_text_that_fails_leaves_the_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, before = make(), TorchCore.prefill

    def broken(core: TorchCore, slot: int, tokens: Sequence[int], start: int) -> Tensor:
        logits_V = before(core, slot, tokens, start)
        return logits_V * torch.nan if 250 in tokens else logits_V

    monkeypatch.setattr(TorchCore, "prefill", broken)
    bad, good = scheduler.submit(request((1, 250))), scheduler.submit(request())
    with pytest.raises(RunFailed, match="not finite"):
        list(bad)
    assert texts(good)[0][1] > 0
    assert scheduler.tally.restarts == 0


def test_closing_drains_or_tells(make: Make, gate: Gate) -> None:
    patient, hasty = make(), make()
    drained, dropped = patient.submit(request(tokens_max=3)), hasty.submit(request())
    threading.Timer(0.05, gate.open.set).start()
    hasty.close()
    patient.close(drain_s=20.0)
    assert texts(drained)[0][1] == 3
    with pytest.raises(Closed):
        list(dropped)
    with pytest.raises(Closed):
        patient.submit(request())
    assert not patient.alive


def test_what_cannot_fit_the_context_is_told_with_the_numbers(make: Make) -> None:
    scheduler = make()
    with pytest.raises(BadInput, match=f"{CONTEXT} tokens long, the context {CONTEXT}"):
        scheduler.submit(request(range(CONTEXT)))
    with pytest.raises(BadInput, match="10 tokens of prompt and 39 of answer") as told:
        scheduler.submit(request(tokens_max=39))
    assert told.value.hint == "ask for at most 38 tokens, or shorten the prompt"
    assert texts(scheduler.submit(request(tokens_max=38)))[0][1] > 0


def test_an_event_loop_hears_the_same(make: Make) -> None:
    scheduler = make()

    async def heard() -> list[Piece]:
        batches = scheduler.submit(request()).batches()
        return [piece async for pieces in batches for piece in pieces]

    assert asyncio.run(heard()) == list(scheduler.submit(request()))
