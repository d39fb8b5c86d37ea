from __future__ import annotations

import pytest

from narrows.spec import record
from narrows.spec.job import Job, TrainIntent
from narrows.spec.optimizer import (
    BLOCK,
    RULES,
    SGD,
    Adafactor,
    AdamW,
    Lion,
    Muon,
    Optimizer,
    Rule,
    StateBits,
    kept,
    name_of,
)

MATRIX = (512, 1024)


def kept_bytes(rule: Rule, bits: StateBits = 32, *, within: bool = True) -> int:
    optimizer = Optimizer(rule=rule, learning_rate=1e-3, state_bits=bits)
    return sum(each.memory_bytes for each in kept(optimizer, MATRIX, within=within))


def job(train: dict[str, object]) -> Job:
    return record.from_builtins(Job, {"name": "x", "train": train})


@pytest.mark.parametrize("name", RULES)
def test_a_job_names_a_rule_alone_or_with_its_numbers(name: str) -> None:
    usual = job({"optimizer": name}).train.rule
    assert name_of(usual) == name
    assert job({"optimizer": {"type": name}}).train.rule == usual


def test_a_rule_s_own_numbers_stand_in_a_table_of_its_own() -> None:
    given = {"optimizer": {"type": "sgd", "momentum": 0.5, "nesterov": True}}
    assert job(given).train.rule == SGD(momentum=0.5, nesterov=True)
    assert TrainIntent().rule == AdamW()


def test_a_matrix_keeps_what_its_rule_says() -> None:
    values = 512 * 1024
    assert kept_bytes(AdamW()) == 8 * values
    assert kept_bytes(Lion()) == kept_bytes(SGD()) == 4 * values
    assert kept_bytes(SGD(momentum=0.0)) == 0
    assert kept_bytes(Adafactor()) == 4 * (512 + 1024)
    assert kept_bytes(Muon()) == 4 * values
    assert kept_bytes(Muon(), within=False) == 8 * values


def test_eight_bits_take_a_byte_and_a_scale_for_each_block() -> None:
    values = 512 * 1024
    assert kept_bytes(AdamW(), 8) == 2 * (values + 4 * values // BLOCK)
    assert kept_bytes(AdamW(), 16) == 4 * values


def test_small_parameters_keep_fp32() -> None:
    optimizer = Optimizer(learning_rate=1e-3, state_bits=8)
    assert {each.bits for each in kept(optimizer, (64,), within=True)} == {32}


def test_an_average_is_kept_in_fp32() -> None:
    optimizer = Optimizer(learning_rate=1e-3, state_bits=8, ema=0.99)
    assert [each.bits for each in kept(optimizer, MATRIX, within=True)] == [8, 8, 32]
