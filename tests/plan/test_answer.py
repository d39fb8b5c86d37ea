from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from narrows.plan.answer import Question, answer_memory, pass_rows, predict_answer
from narrows.plan.passes import Pass
from narrows.spec.machine import (
    CachedCurve,
    CachedPoint,
    ExtendedCurve,
    ExtendedPoint,
    Machine,
    StreamedCurve,
    StreamedPoint,
)
from narrows.spec.model import gpt2, llama
from narrows.spec.units import Bytes, Seconds

MakeMachine = Callable[..., Machine]
GPT2 = gpt2(layers=4, width=256, heads=4, vocabulary=1000, context=512)
SMOL = llama(layers=4, width=256, heads=4, kv_heads=2, vocabulary=1000, context=512)
ASKED = Question(prompt=64, tokens=33, precision="bf16")


def question(**changes: Any) -> Question:
    return Question(**{"prompt": 64, "tokens": 33, "precision": "bf16", **changes})


def with_curves(machine: Machine, *, slower: float = 1.0, making: float = 0.0) -> Machine:
    """Weights at 20 GB/s, keys at 5 GB/s, and blocks that take `slower` times 100 µs."""
    streamed = tuple(
        StreamedPoint(m=m, n=n, k=k, working_set=Bytes(size), seconds=2.0 * n * k / 20e9)
        for m in (1, 8) for n, k in ((768, 256), (1024, 256), (256, 1024)) for size in (1e6, 1e8)
    )  # fmt: skip
    cached = tuple(
        CachedPoint(
            sequences=1, kv_heads=4, group=1, head_width=64, queries=queries, keys=keys,
            seconds=1e-5 + 1e-10 * 4 * 64 * queries * keys,
        )
        for queries, keys in ((1, 64), (1, 512), (64, 64), (512, 512))
    )  # fmt: skip
    blocks = tuple(
        ExtendedPoint(width=256, head_width=64, layers=2, queries=queries, keys=64,
                      seconds=slower * 1e-4)
        for queries in (1, 64)
    )  # fmt: skip
    device = msgspec.structs.replace(
        machine.device,
        streamed=(StreamedCurve(precision="bf16", points=streamed, making=Seconds(making)),),
        cached=(CachedCurve(precision="bf16", points=cached),),
        extended=(ExtendedCurve(kind="gpt2", precision="bf16", points=blocks),),
    )
    return msgspec.structs.replace(machine, device=device)


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    return with_curves(make_machine())


@pytest.mark.parametrize("spec", [GPT2, SMOL])
def test_a_ledger_is_the_sum_of_its_rows(spec: object, machine: Machine) -> None:
    found = predict_answer(spec, ASKED, machine)  # type: ignore[arg-type]
    assert {row.phase for row in found.rows} == {"prefill", "decode"}
    assert found.step_seconds == pytest.approx(found.first_token_s + 32 * found.per_token_s)
    assert found.total.steps == 32 and found.step_tokens == 33
    assert 0 < found.per_token_s < found.first_token_s
    assert found.memory.peak == pytest.approx(sum(size for _, size in found.memory.ranked()))


def test_a_single_token_has_no_time_between_tokens(machine: Machine) -> None:
    found = predict_answer(GPT2, question(tokens=1), machine)
    assert found.per_token_s == 0.0 and found.step_seconds == found.first_token_s


def test_a_block_takes_what_blocks_were_measured_to_take(make_machine: MakeMachine) -> None:
    """The same block, stack and past: twice the time for a block is twice for all of them."""
    each = Pass(sequences=1, queries=1, past=63)
    setting = ASKED.setting
    one, two = (
        sum(row.seconds for row in pass_rows(GPT2, each, setting, machine, "decode"))
        for machine in (with_curves(make_machine(), slower=slower) for slower in (1.0, 2.0))
    )
    assert two - one == pytest.approx(GPT2.layers * 1e-4, rel=0.15)


def test_weights_are_read_at_the_rate_of_their_working_set(machine: Machine) -> None:
    head = next(row for row in predict_answer(GPT2, ASKED, machine).rows
                if (row.operation, row.phase) == ("head", "decode"))  # fmt: skip
    assert head.seconds / head.count == pytest.approx(2.0 * 1000 * 256 / 20e9, rel=0.05)


def test_what_training_taught_is_left_out(machine: Machine) -> None:
    taught = msgspec.structs.replace(machine, calibration={"gemm": 3.0, "attention": 2.0})
    assert predict_answer(GPT2, ASKED, taught) == predict_answer(GPT2, ASKED, machine)


def test_a_fresh_process_makes_its_products_once(make_machine: MakeMachine) -> None:
    machine = with_curves(make_machine(), making=1e-3)
    warm, fresh = (predict_answer(GPT2, question(fresh=fresh), machine) for fresh in (False, True))
    assert fresh.first_token_s - warm.first_token_s == pytest.approx(6e-3)
    assert fresh.per_token_s == warm.per_token_s
    assert fresh.memory.runtime > warm.memory.runtime


def test_a_tokenizer_that_is_read_takes_memory_for_each_token() -> None:
    """Measured of models 32 wide: 42, 62 and 77 MB with 16,000, 32,000 and 50,257 tokens."""
    peaks = [
        answer_memory(msgspec.structs.replace(GPT2, vocabulary=count), question(fresh=True)).runtime
        for count in (16_000, 32_000, 50_257)
    ]
    assert peaks[1] - peaks[0] == pytest.approx(20e6, rel=0.4)
    assert peaks[2] - peaks[1] == pytest.approx(15e6, rel=0.4)


def test_an_older_record_gives_a_roofline(make_machine: MakeMachine) -> None:
    """Without the curves of answering no token is quicker than its weights are read."""
    found = predict_answer(GPT2, ASKED, make_machine(copy=1e9))
    assert found.per_token_s > 2.0 * (GPT2.parameters - GPT2.embedding_parameters) / 8e9


def test_keys_and_values_are_kept_up_to_the_context() -> None:
    small = answer_memory(SMOL, question(sequences=3))
    assert small.cache == 3 * 2 * SMOL.layers * SMOL.kv_heads * 64 * (64 + 33) * 2
    longest = answer_memory(SMOL, question(tokens=10_000))
    assert longest.cache == 2 * SMOL.layers * SMOL.kv_heads * 64 * SMOL.context * 2
    assert small.weights == 2 * SMOL.parameters
    coded = answer_memory(SMOL, replace(question(sequences=3), cache="int8"))
    assert coded.cache == small.cache * (64 + 4) / 128


def test_a_text_beyond_the_context_costs_as_its_end(machine: Machine) -> None:
    long, longer = (
        predict_answer(GPT2, question(tokens=tokens), machine).per_token_s
        for tokens in (4000, 8000)
    )
    assert long == pytest.approx(longer)
