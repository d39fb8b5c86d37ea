from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from narrows.infer.sampling import (
    Sampler,
    Sampling,
    draw,
    min_p,
    penalised,
    shaped,
    tempered,
    top_k,
    top_p,
)
from narrows.kernels.arrays import Floats
from narrows.spec.errors import BadInput, RunFailed

ODDS = np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32)
LOGITS = np.log(ODDS) + np.float32(3.0)
rows = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(
    lambda values: np.array(values, np.float32)
)


def kept(logits_V: Floats) -> list[int]:
    return np.isfinite(logits_V).nonzero()[0].tolist()


class Given(np.random.Generator):
    """Draws one number always."""

    def __init__(self, uniform: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.uniform = uniform

    def random(self, *_: object) -> float:  # type: ignore[override]
        return self.uniform


def normal(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert kept(top_k(LOGITS, 2)) == [1, 3]
    assert kept(top_k(LOGITS, 5)) == kept(top_k(LOGITS, 900)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_fewest_whose_odds_reach_p() -> None:
    assert kept(top_p(LOGITS, 0.39)) == [1]
    assert kept(top_p(LOGITS, 0.41)) == [1, 3]
    assert kept(top_p(LOGITS, 0.84)) == [1, 3, 4]
    assert kept(top_p(LOGITS, 1e-9)) == [1]
    assert kept(top_p(LOGITS, 1.0)) == [0, 1, 2, 3, 4]


@given(st.integers(0, 2**31), st.floats(0.01, 0.9999), st.sampled_from([0.3, 1.0, 4.0]))
def test_top_p_of_a_large_vocabulary_is_the_one_that_sorts(
    seed: int, p: float, spread: float
) -> None:
    logits_V = normal(3000, seed=seed) * np.float32(spread)
    odds_V, places_V = torch.from_numpy(logits_V).double().softmax(-1).sort(descending=True)
    before_V = (odds_V.cumsum(-1) - odds_V).numpy()
    clear_V = np.abs(before_V - p) > 1e-5
    left_V = np.isfinite(top_p(logits_V, p))[places_V.numpy()]
    assert np.array_equal(left_V[clear_V], (before_V < p)[clear_V])


@pytest.mark.parametrize("p", [0.0, 1e-300, 1e-46, 1e-45, 1e-38])
@pytest.mark.parametrize("count", [5, 3000])
def test_the_smallest_top_p_leaves_the_likeliest(p: float, count: int) -> None:
    logits_V = normal(count, seed=4)
    assert kept(top_p(logits_V, p)) == [logits_V.argmax()]
    assert kept(top_p(np.zeros(count, np.float32), p)) == [0]
    sampling = Sampling(temperature=1.0, top_p=p, seed=1)
    assert Sampler(sampling, count).choose(logits_V) == logits_V.argmax()


def test_of_equals_at_the_end_of_top_p_the_first_stay() -> None:
    assert kept(top_p(np.zeros(1000, np.float32), 0.0105)) == list(range(11))


@given(st.integers(0, 2**31), st.integers(2, 1500))
def test_a_token_is_where_the_summed_odds_pass_the_number(seed: int, count: int) -> None:
    logits_V = top_k(3 * normal(count, seed=seed), count // 2 + 1)
    uniform = float(np.random.default_rng(seed).random())
    token = draw(logits_V, Given(uniform))
    passed_V = torch.from_numpy(logits_V).softmax(-1, dtype=torch.float64).cumsum(-1)
    before = 0.0 if token == 0 else float(passed_V[token - 1])
    assert before - 1e-6 <= uniform * float(passed_V[-1]) <= float(passed_V[token]) + 1e-6


def test_min_p_is_a_share_of_the_likeliest() -> None:
    assert kept(min_p(LOGITS, 0.7)) == [1, 3]
    assert kept(min_p(LOGITS, 0.2)) == [1, 2, 3, 4]
    assert kept(min_p(LOGITS, 1.0)) == [1]
    assert kept(min_p(LOGITS, 0.0)) == [0, 1, 2, 3, 4]


def test_a_penalty_makes_what_was_seen_less_likely_whatever_its_sign() -> None:
    logits_V = np.array([2.0, -2.0, 4.0, 0.0], np.float32)
    seen_V = np.array([True, True, False, True])
    assert penalised(logits_V, seen_V, 2.0).tolist() == [1.0, -4.0, 4.0, 0.0]


def test_functions_work_on_rows_alone_or_together() -> None:
    rows_BV = normal(3, 5, 30, seed=0)
    changes = (
        lambda x: top_k(x, 4), lambda x: top_p(x, 0.6), lambda x: min_p(x, 0.2),
        lambda x: tempered(x, 0.3),
    )  # fmt: skip
    for change in changes:
        together = change(rows_BV).reshape(-1, 30)
        alone = np.stack([change(row) for row in rows_BV.reshape(-1, 30)])
        assert np.array_equal(together, alone)


def test_the_order_is_penalty_temperature_top_k_top_p_min_p() -> None:
    logits_V, seen_V = normal(50, seed=3), np.arange(50) % 3 == 0
    sampling = Sampling(temperature=0.7, top_k=16, top_p=0.8, min_p=0.1, repetition_penalty=1.5)
    steps = [
        lambda x: penalised(x, seen_V, 1.5), lambda x: tempered(x, 0.7), lambda x: top_k(x, 16),
        lambda x: top_p(x, 0.8), lambda x: min_p(x, 0.1),
    ]  # fmt: skip

    def by_hand(*order: int) -> Floats:
        logits = logits_V
        for index in order:
            logits = steps[index](logits)
        return logits

    ours = shaped(logits_V, sampling, seen_V)
    assert np.array_equal(ours, by_hand(0, 1, 2, 3, 4))
    for order in ((1, 2, 3, 4, 0), (0, 2, 3, 4, 1), (0, 1, 3, 2, 4), (0, 1, 4, 2, 3)):
        assert kept(ours) != kept(by_hand(*order)), order


def test_it_is_what_transformers_does() -> None:
    processors = pytest.importorskip(
        "transformers.generation.logits_process", reason="transformers is not installed"
    )
    generator = torch.Generator().manual_seed(2)
    seen = torch.randint(60, (1, 25), generator=generator)
    seen_V = torch.zeros(60, dtype=torch.bool)
    seen_V[seen[0]] = True
    theirs_of = [
        processors.RepetitionPenaltyLogitsProcessor(1.3), processors.TemperatureLogitsWarper(0.6),
        processors.TopKLogitsWarper(30), processors.TopPLogitsWarper(0.95),
        processors.MinPLogitsWarper(0.03),
    ]  # fmt: skip
    sampling = Sampling(temperature=0.6, top_k=30, top_p=0.95, min_p=0.03, repetition_penalty=1.3)
    for _ in range(200):
        logits_V = torch.randn(60, generator=generator) * 3
        theirs = logits_V[None].clone()
        for processor in theirs_of:
            theirs = processor(seen, theirs)
        ours = shaped(logits_V.numpy(), sampling, seen_V.numpy())
        assert kept(ours) == kept(theirs[0].numpy())
        torch.testing.assert_close(torch.from_numpy(ours).softmax(-1), theirs[0].softmax(-1))


@given(rows, st.floats(0.01, 1.0), st.floats(0.0, 1.0), st.integers(1, 50))
def test_the_likeliest_always_stays(logits_V: Floats, p: float, least: float, k: int) -> None:
    sampling = Sampling(temperature=0.9, top_k=k, top_p=p, min_p=least)
    left_V = shaped(logits_V, sampling, np.zeros(logits_V.shape, bool))
    assert left_V[logits_V.argmax()] == left_V.max() > -math.inf


@given(rows, st.integers(0, 2**31))
def test_what_is_ruled_out_is_never_drawn(logits_V: Floats, seed: int) -> None:
    logits_V = top_k(logits_V, 3)
    generator = np.random.default_rng(seed)
    assert all(logits_V[draw(logits_V, generator)] > -math.inf for _ in range(5))


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.57, 1), (0.58, 3), (1.0, 3)])
def test_the_ends_of_the_range_are_tokens_that_have_odds(uniform: float, token: int) -> None:
    # Tokens 1 and 3 are left, with odds of 4/7 and 3/7.
    assert draw(top_k(LOGITS, 2), Given(uniform)) == token


def test_tokens_come_as_often_as_their_odds_say() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw(LOGITS, generator) for _ in range(20_000)]
    shares = np.bincount(drawn, minlength=5) / 20_000
    # Four standard deviations of a share of 0.5 among 20,000.
    assert np.abs(shares - ODDS).max() < 4 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_temperature_zero_takes_the_likeliest(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_p=0.5), 5)
    assert {sampler.choose(LOGITS) for _ in range(10)} == {1}


def test_a_penalty_counts_once_and_at_temperature_zero_too() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), 5)
    assert [sampler.choose(LOGITS) for _ in range(5)] == [1, 3, 4, 1, 1]
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), 5)
    sampler.saw([1, 3])
    assert sampler.choose(LOGITS) == 4


def test_a_low_temperature_does_not_overflow() -> None:
    logits_V = np.array([3e38, 1.0, -3e38], np.float32)
    assert Sampler(Sampling(temperature=1e-5), 3).choose(logits_V) == 0


def test_equal_seeds_choose_equal_tokens() -> None:
    def chosen(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), 5)
        return [sampler.choose(LOGITS) for _ in range(40)]

    np.random.seed(7)
    first = chosen(4)
    np.random.seed(8)
    assert chosen(4) == first != chosen(5)


def test_ids_without_text_are_never_chosen() -> None:
    logits_V = np.append(LOGITS, np.full(3, 50.0, np.float32))
    sampler = Sampler(Sampling(temperature=1.0), 5)
    assert max(sampler.choose(logits_V) for _ in range(100)) < 5


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_told(wrong: float) -> None:
    logits_V = LOGITS.copy()
    logits_V[2] = wrong
    with pytest.raises(RunFailed, match="not finite"):
        Sampler(Sampling(), 5).choose(logits_V)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", 0),
        ("top_p", -0.1), ("top_p", 1.1), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.5),
        ("repetition_penalty", 0.0), ("repetition_penalty", math.nan),
        ("repetition_penalty", 1e-50), ("repetition_penalty", 1e50), ("seed", -1), ("seed", 2**64),
    ],
)  # fmt: skip
def test_a_value_that_means_nothing_is_refused(field: str, value: float) -> None:
    with pytest.raises(BadInput) as caught:
        Sampling(**{field: value})
    assert field.replace("_", "-") in caught.value.what.replace(" ", "-")
    assert str(value) in caught.value.what and caught.value.hint


def test_biased_and_penalised_tokens_are_chosen_accordingly() -> None:
    logits_V = np.array([0.0, 2.0, 1.5, 1.2], np.float32)

    def chosen(**options: object) -> list[int]:
        sampler = Sampler(Sampling(temperature=0.0, **options), 4)  # type: ignore[arg-type]
        return [sampler.choose(logits_V) for _ in range(5)]

    assert chosen() == [1, 1, 1, 1, 1]
    assert chosen(logit_bias={0: 5.0, 1: -100.0}) == [0, 0, 0, 0, 0]
    # Once for a token that was written: 2.0, 1.5 and 1.2 become 1.0, 0.5 and 0.2, and stay.
    assert chosen(presence_penalty=1.0) == [1, 2, 3, 1, 1]
    # For each time: token 1 falls to 1.4, then to 0.8.
    assert chosen(frequency_penalty=0.6) == [1, 2, 1, 3, 2]


@pytest.mark.parametrize(
    "options",
    [{"presence_penalty": math.nan}, {"frequency_penalty": math.inf}, {"logit_bias": {4: 1.0}}],
)
def test_penalties_and_biases_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Sampler(Sampling(**options), 4)  # type: ignore[arg-type]
