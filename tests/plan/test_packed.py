"""Steps of packed decoders, predicted by steps that take what physics says of known rates."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace

from narrows.plan.packed import PackedQuestion, predict_packed
from narrows.spec.machine import Machine, PackedCurve, PackedPoint
from narrows.spec.model import ModelSpec, llama

MakeMachine = Callable[..., Machine]
RATE, KEYS_S, SCORES_S = 20e9, 0.2e-9, 0.02e-9
"""Bytes a second; seconds of attention for each position and value of a head: one query, many."""
SHARING_S = 0.03e-9
"""And for each head more that shares a head's keys."""
INT8 = 0.6
"""Of what attention takes, over a cache in int8."""
MULTIPLIED_S = 5e-12
"""Seconds for each weight and row."""
SPEC = llama(layers=8, width=768, heads=12, kv_heads=4, vocabulary=32_000, context=2048)


def weights(spec: ModelSpec) -> int:
    return spec.parameters - spec.vocabulary * spec.width - (2 * spec.layers + 1) * spec.width


def step(spec: ModelSpec, rows: int, bits: float, attended: float) -> float:
    reading = weights(spec) * bits / 8 / RATE
    return max(reading, weights(spec) * rows * MULTIPLIED_S) + attended


def measured(bits: int, per_weight: float) -> PackedCurve:
    points = []
    for layers, width in ((2, 384), (14, 768)):
        spec = llama(layers=layers, width=width, heads=width // 64, vocabulary=1, context=64)
        unit = layers * width
        for sequences, queries, past, cache in (
            (1, 1, 0, "bf16"), (8, 1, 0, "bf16"), (32, 1, 0, "bf16"), (1, 256, 0, "bf16"),
            (1, 1, 1024, "bf16"), (1, 256, 1024, "bf16"), (1, 1, 1024, "int8"),
            (1, 256, 1024, "int8"),
        ):  # fmt: skip
            rate = SCORES_S if queries > 1 else KEYS_S
            own, before = (queries + 1) / 2, past * (INT8 if cache == "int8" else 1.0)
            keys = sequences * queries * (before + own)
            seconds = step(spec, sequences * queries, per_weight, rate * keys * unit)
            points.append(
                PackedPoint(layers=layers, width=width, sequences=sequences, queries=queries,
                            past=past, seconds=seconds, cache=cache)
            )  # fmt: skip
        for past, cache in ((0, "bf16"), (1024, "bf16"), (1024, "int8")):
            shared = llama(layers=layers, width=width, heads=width // 64, kv_heads=width // 192,
                           vocabulary=1, context=64)  # fmt: skip
            share = INT8 if cache == "int8" else 1.0
            attended = past * (unit / 3) * share * (KEYS_S + 2 * SHARING_S)
            points.append(
                PackedPoint(layers=layers, width=width, sequences=1, queries=1, past=past,
                            cache=cache, seconds=step(shared, 1, per_weight, attended), group=3)
            )  # fmt: skip
    return PackedCurve(bits=bits, points=tuple(points))


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    made = make_machine()
    packed = (measured(4, 5.0), measured(8, 8.5))
    return with_packed(made, packed)


def with_packed(machine: Machine, packed: tuple[PackedCurve, ...]) -> Machine:
    device = msgspec.structs.replace(machine.device, packed=packed)
    return msgspec.structs.replace(machine, device=device)


def question(bits: float, *, prompt: int = 200, tokens: int = 65, texts: int = 1) -> PackedQuestion:
    head = SPEC.vocabulary * SPEC.width
    size = (weights(SPEC) + head) * bits / 8
    return PackedQuestion(prompt=prompt, tokens=tokens, weight_bytes=size, sequences=texts)


def seconds(machine: Machine, asked: PackedQuestion, operation: str, phase: str) -> float:
    found = predict_packed(SPEC, asked, machine)
    assert found is not None
    return sum(r.seconds for r in found.rows if (r.operation, r.phase) == (operation, phase))


@pytest.mark.parametrize("bits", [5.0, 8.5])
def test_a_token_takes_what_reading_all_weights_does(machine: Machine, bits: float) -> None:
    found = seconds(machine, question(bits), "products", "decode")
    whole = weights(SPEC) + SPEC.vocabulary * SPEC.width
    assert found == pytest.approx(64 * whole * bits / 8 / RATE, rel=0.02)


def test_bf16_takes_as_much_longer_as_it_is_larger(machine: Machine) -> None:
    for phase in ("prefill", "decode"):
        coded, whole = (
            seconds(machine, question(bits, prompt=1500), "products", phase) for bits in (8.5, 16.0)
        )
        assert whole / coded == pytest.approx(16.0 / 8.5, rel=0.02)


def test_a_token_reads_what_is_cached_of_key_heads(machine: Machine) -> None:
    found = seconds(machine, question(5.0), "attention", "decode")
    unit = SPEC.layers * SPEC.kv_heads * SPEC.head_width
    each = KEYS_S + 2 * SHARING_S
    assert found == pytest.approx(64 * each * unit * (200 + 65 / 2), rel=0.02)


def test_reading_what_is_cached_is_all_where_heads_that_share_it_were_not_measured(
    machine: Machine,
) -> None:
    alone = with_packed(machine, tuple(
        msgspec.structs.replace(curve, points=tuple(p for p in curve.points if p.group == 1))
        for curve in machine.device.packed
    ))  # fmt: skip
    whole, less = (seconds(m, question(5.0), "attention", "decode") for m in (machine, alone))
    assert less / whole == pytest.approx(KEYS_S / (KEYS_S + 2 * SHARING_S), rel=0.02)


def test_a_prompt_multiplies_all_weights_by_all_rows(machine: Machine) -> None:
    found = seconds(machine, question(5.0, prompt=1500), "products", "prefill")
    head = SPEC.vocabulary * SPEC.width * 5.0 / 8 / RATE
    expected = weights(SPEC) * 1500 * MULTIPLIED_S + head
    assert found == pytest.approx(expected, rel=0.02)


def test_attention_of_a_prompt_grows_with_its_square(machine: Machine) -> None:
    short, long = (
        seconds(machine, question(5.0, prompt=prompt), "attention", "prefill")
        for prompt in (400, 1600)
    )
    assert long / short == pytest.approx(16.0, rel=0.01)


def test_texts_share_what_is_read_until_they_multiply_for_longer(machine: Machine) -> None:
    one, eight, many = (
        seconds(machine, question(5.0, texts=texts), "products", "decode") for texts in (1, 8, 64)
    )
    assert eight < 1.5 * one
    assert many / eight == pytest.approx(64 / 8, rel=0.25)


def test_a_cache_in_int8_takes_what_was_measured_of_one(machine: Machine) -> None:
    for phase, prompt in (("decode", 200), ("prefill", 1500)):
        whole = question(5.0, prompt=prompt)
        coded = replace(whole, cache="int8")
        both = [seconds(machine, each, "attention", phase) for each in (whole, coded)]
        assert both[1] / both[0] == pytest.approx(INT8, rel=0.02)


def test_a_record_without_caches_in_int8_is_taken_for_them_too(machine: Machine) -> None:
    without = with_packed(machine, tuple(
        msgspec.structs.replace(
            curve, points=tuple(point for point in curve.points if point.cache == "bf16")
        )
        for curve in machine.device.packed
    ))  # fmt: skip
    whole = question(5.0)
    found = seconds(without, replace(whole, cache="int8"), "attention", "decode")
    assert found == seconds(machine, whole, "attention", "decode")


def test_each_row_reads_its_adapter_in_bf16(machine: Machine) -> None:
    values = 4_000_000
    for texts in (1, 8):
        worn = replace(question(5.0, texts=texts), adapter_bytes=2.0 * values)
        found = seconds(machine, worn, "adapter", "decode")
        assert found == pytest.approx(64 * texts * values * 2 / RATE, rel=0.02)
        bare, beside = (predict_packed(SPEC, replace(worn, adapter_bytes=2.0 * v), machine)
                        for v in (0.0, values))  # fmt: skip
        assert bare and beside and not [r for r in bare.rows if r.operation == "adapter"]
        assert beside.memory.weights - bare.memory.weights == 2 * values
        assert beside.per_token_s - bare.per_token_s == pytest.approx(found / 64)


def test_what_was_not_measured_is_not_predicted(make_machine: MakeMachine) -> None:
    assert predict_packed(SPEC, question(5.0), make_machine()) is None


def test_memory_is_the_sum_of_its_kinds(machine: Machine) -> None:
    found = predict_packed(SPEC, question(5.0, texts=8), machine)
    assert found is not None
    memory = found.memory
    assert memory.peak == pytest.approx(sum(size for _, size in memory.ranked()))
    room = 272
    heads = 2 * 8 * SPEC.layers * SPEC.kv_heads
    assert memory.cache == 2 * heads * SPEC.head_width * room
    coded = predict_packed(SPEC, replace(question(5.0, texts=8), cache="int8"), machine)
    assert coded is not None and coded.memory.cache == heads * (SPEC.head_width + 4) * room
    assert found.step_seconds == pytest.approx(found.first_token_s + 64 * found.per_token_s)
