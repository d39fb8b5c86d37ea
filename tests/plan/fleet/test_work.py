from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.model.presets import preset, presets
from narrows.plan.fleet.memory import weights_bytes
from narrows.plan.fleet.work import Matrix, Work, adapter_share, halves, parameters
from narrows.spec.model import Alibi, ModelSpec, Window, gpt2

ALL = {name: preset.spec for name, preset in presets().items()}
each = pytest.mark.parametrize("spec", ALL.values(), ids=ALL)
SIDES = st.integers(min_value=1, max_value=4096).map(float)
MATRICES = st.lists(
    st.builds(Matrix, st.just("any"), SIDES, SIDES, st.sampled_from(("out", "in", "whole"))),
    max_size=5,
)
GPT = gpt2(layers=4, width=64, heads=4, vocabulary=100, context=32)


def weights(matrices: tuple[Matrix, ...]) -> float:
    return sum(matrix.parameters for matrix in matrices)


def stack(work: Work, experts: float) -> float:
    """Weights of all layers' matrices, with so many experts in a layer that has any."""
    return (
        work.layers * weights(work.attention)
        + work.layers_dense * weights(work.dense)
        + work.layers_experts * (weights(work.routed) + experts * weights(work.expert))
    )


def test_the_presets_have_every_kind_of_model() -> None:
    specs = ALL.values()
    assert any(spec.experts for spec in specs) and any(spec.latent for spec in specs)
    assert any(spec.encoder_layers for spec in specs) and any(not spec.causal for spec in specs)
    assert any(spec.experts and spec.experts.dense_layers for spec in specs)


@each
def test_a_token_meets_the_matrices_that_the_model_counts(spec: ModelSpec) -> None:
    chosen = spec.experts.chosen if spec.experts else 0
    met = stack(Work.of(spec, spec.context), chosen) + spec.vocabulary * spec.width
    assert met == pytest.approx(spec.product_parameters_active, rel=1e-12)


@each
def test_what_is_no_matrix_is_a_norm_a_bias_or_an_embedding(spec: ModelSpec) -> None:
    work = Work.of(spec, spec.context)
    matrices = stack(work, spec.experts.count if spec.experts else 0)
    rest = spec.parameters - spec.embedding_parameters - matrices
    attended = spec.layers * (2 if spec.encoder_layers else 1) + spec.encoder_layers
    widest = max(spec.qkv_width, spec.up_width, 2 * spec.width)
    experts = spec.experts
    biases = experts.count * (2 * experts.width + spec.width + 1) if experts else 0
    assert 0 <= rest <= attended * (8 * widest + biases)
    assert weights_bytes(work) == pytest.approx(2.0 * (matrices + spec.embedding_parameters))


@each
def test_layers_are_dense_or_of_experts(spec: ModelSpec) -> None:
    work = Work.of(spec, spec.context)
    assert work.layers == spec.layers + spec.encoder_layers
    assert work.layers_dense + work.layers_experts == work.layers
    assert (work.layers_experts > 0) == bool(work.expert) == bool(work.routed)


def test_an_encoder_and_decoder_have_a_second_attention_in_the_decoder() -> None:
    both = msgspec.structs.replace(GPT, encoder_layers=2)
    alone, crossed = Work.of(GPT, 32), Work.of(both, 32)
    attention = weights(alone.attention)
    assert attention == 4 * 64 * 64
    assert crossed.layers * weights(crossed.attention) == pytest.approx((4 + 2 + 4) * attention)


@given(matrices=MATRICES)
def test_without_a_ramp_the_halves_are_the_weights(matrices: list[Matrix]) -> None:
    sums = parameters(matrices)
    assert sums.whole + sums.cut == sum(matrix.out * matrix.inner for matrix in matrices)
    assert sums.whole == weights(tuple(m for m in matrices if m.cut == "whole"))


@settings(deadline=None)
@given(matrices=MATRICES, half=SIDES, tensor=st.sampled_from((1, 2, 4, 8, 64)))
def test_tensor_parallelism_divides_the_side_that_is_cut(
    matrices: list[Matrix], half: float, tensor: int
) -> None:
    sums = halves(matrices, half)
    by_hand = 0.0
    for matrix in matrices:
        out = matrix.out / (tensor if matrix.cut == "out" else 1)
        inner = matrix.inner / (tensor if matrix.cut == "in" else 1)
        by_hand += (out + half) * (inner + half)
    assert sums.whole + sums.cut / tensor == pytest.approx(by_hand)


def test_only_heads_and_feed_forward_are_cut() -> None:
    work = Work.of(ALL["deepseek-v3"], 4096)
    cuts = {m.name: m.cut for m in (*work.attention, *work.dense, *work.routed, *work.expert)}
    assert cuts == {
        "query down": "whole", "query up": "out", "key value down": "whole",
        "key value up": "out", "out": "in", "up": "out", "down": "in", "router": "whole",
        "shared up": "out", "shared down": "in", "expert up": "whole", "expert down": "whole",
    }  # fmt: skip


def test_scores_are_two_products_over_half_of_the_square() -> None:
    assert Work.of(GPT, 32).keys == 16
    assert Work.of(GPT, 32).score_flop == 2 * (2 * 16 * 64)
    both_ways = msgspec.structs.replace(GPT, causal=False)
    assert Work.of(both_ways, 32).score_flop == 2 * Work.of(GPT, 32).score_flop


def test_a_window_bounds_the_keys_of_its_layers() -> None:
    windowed = msgspec.structs.replace(GPT, window=Window(size=8, full_every=4))
    near = 8 - 8 * 8 / (2 * 32)
    assert Work.of(windowed, 32).keys == pytest.approx((3 * near + 16) / 4)


def test_only_added_biases_slow_the_scores() -> None:
    assert Work.of(msgspec.structs.replace(GPT, positions=Alibi()), 32).biased_scores
    assert not Work.of(GPT, 32).biased_scores


def test_adapters_are_as_many_parameters_as_their_ranks_say() -> None:
    spec = preset("llama-2-7b").spec
    D, F = 4096, 11008
    adapters = 16 * ((3 * D + D) + (D + D) + (2 * F + D) + (D + F))
    whole = 4 * D * D + 3 * D * F
    assert adapter_share(Work.of(spec, 4096), 16) == pytest.approx(adapters / whole)
