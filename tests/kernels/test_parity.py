"""The native kernels against the readable ones in fp32, forward and backward, at odd sizes.

Inputs are numbers that bf16 holds exactly, so what differs is the kernels' own rounding. It may be
a few roundings of the result, and no more than torch's own bf16 makes of the same operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from narrows.kernels.interface import (
    AdamWStep,
    Code,
    Heads,
    Kernels,
    Master,
    Moments,
    Rotation,
    Spans,
)
from narrows.spec.optimizer import BLOCK

from .conftest import ROUNDING, error, normal

Operation = Callable[..., Tensor | tuple[Tensor, ...]]


def outcome(run: Operation, inputs: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Results of an operation and the gradients of its inputs, in fp32."""
    leaves = [None if each is None else each.to(dtype).clone().requires_grad_() for each in inputs]
    results = run(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    upstream = [normal(*each.shape, seed=90 + i).to(dtype) for i, each in enumerate(results)]
    present = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(results, present, upstream)
    return [each.detach().float() for each in (*results, *gradients)]


def compare(
    of: Callable[[Kernels], Operation], inputs: Sequence[Tensor | None], native: Kernels,
    reference: Kernels, *, roundings: float = 3.0,
) -> None:  # fmt: skip
    exact = outcome(of(reference), inputs, torch.float32)
    ours = outcome(of(native), inputs, torch.bfloat16)
    torchs = outcome(of(reference), inputs, torch.bfloat16)
    for index, (found, theirs, expected) in enumerate(zip(ours, torchs, exact, strict=True)):
        own, peer = error(found, expected), error(theirs, expected)
        assert own <= roundings * ROUNDING, (index, own / ROUNDING)
        assert own <= 1.2 * peer + 0.2 * ROUNDING, (index, own / ROUNDING, peer / ROUNDING)
        worst = float((found - expected).abs().max() / expected.abs().max())
        assert worst < 0.03, (index, worst)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 1, 65), (2, 37, 384), (3, 5, 1000), (1, 130, 7)])
def test_norm(
    shape: tuple[int, ...], added: bool, biased: bool, centre: bool, native: Kernels,
    reference: Kernels,
) -> None:  # fmt: skip
    D = shape[-1]
    delta_BTD = normal(*shape, seed=1) if added else None
    bias_D = normal(D, seed=3) if biased and centre else None
    inputs = (normal(*shape) + 2.0, delta_BTD, normal(D, seed=2), bias_D)

    def of(kernels: Kernels) -> Operation:
        def run(*given: Tensor) -> tuple[Tensor, ...]:
            sum_BTD, out_BTD = kernels.add_norm(*given, epsilon=1e-5, centre=centre)
            # A sum that is the input itself has no rounding to compare.
            return (sum_BTD, out_BTD) if added else (out_BTD,)

        return run

    # A sum rounded to bf16 before its norm is off by one rounding of a value 2 + 2 deviations
    # large; few rows leave the weights' gradients to chance.
    compare(of, inputs, native, reference, roundings=12.0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 64), (2, 3, 65), (1, 129, 96)])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_activation(
    activation: str, shape: tuple[int, ...], native: Kernels, reference: Kernels
) -> None:
    B, T, F = shape
    h_BTX = normal(B, T, F if activation == "gelu" else 2 * F, scale=3.0)
    compare(lambda kernels: lambda h: kernels.activation(h, activation), [h_BTX], native, reference)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_activation_where_it_saturates(
    activation: str, native: Kernels, reference: Kernels
) -> None:
    values = torch.tensor([-1e9, -1e4, -90.0, -88.0, -30.0, -0.0, 0.0, 30.0, 88.0, 1e4, 1e9])
    h_BTX = values.bfloat16().reshape(1, 1, -1)
    if activation == "swiglu":
        h_BTX = torch.cat([h_BTX, torch.ones_like(h_BTX)], dim=-1)
    ours = outcome(lambda h: native.activation(h, activation), [h_BTX], torch.bfloat16)
    exact = outcome(lambda h: reference.activation(h, activation), [h_BTX], torch.float32)
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found, expected.bfloat16().float(), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 64, 65), (2, 33, 96, 40), (1, 130, 48, 300)])
def test_linear(shape: tuple[int, ...], biased: bool, native: Kernels, reference: Kernels) -> None:
    B, T, D, E = shape
    bias_E = normal(E, seed=2) if biased else None
    inputs = (normal(B, T, D), normal(E, D, seed=1, scale=0.1), bias_E)
    compare(lambda kernels: kernels.linear, inputs, native, reference)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 64, 65), (2, 33, 96, 40)])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_activated_linear(
    activation: str, shape: tuple[int, ...], biased: bool, native: Kernels, reference: Kernels
) -> None:
    B, T, F, D = shape
    bias_D = normal(D, seed=2) if biased else None
    h_BTX = normal(B, T, F if activation == "gelu" else 2 * F)
    inputs = (h_BTX, normal(D, F, seed=1, scale=0.1), bias_D)

    def of(kernels: Kernels) -> Operation:
        return lambda h, weight, bias=None: kernels.activated_linear(h, weight, bias, activation)

    # The activation and its gradient are rounded before the products, in torch's bf16 too.
    compare(of, inputs, native, reference, roundings=4.0)


def rotation(T: int, H: int) -> Rotation:
    angles_TH = torch.arange(T)[:, None] * 10_000.0 ** -(torch.arange(H // 2) / (H // 2))
    return Rotation(angles_TH.cos(), angles_TH.sin())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("B", "T", "heads"),
    [
        (1, 1, Heads(1, 1, 32)), (1, 1, Heads(6, 2, 64)), (2, 2, Heads(2, 2, 16)),
        (1, 63, Heads(4, 4, 64)), (2, 64, Heads(4, 2, 64)), (1, 65, Heads(3, 1, 48)),
        (1, 129, Heads(2, 2, 128)), (3, 100, Heads(4, 1, 32)), (1, 200, Heads(9, 3, 64)),
        (2, 70, Heads(2, 1, 6)), (1, 90, Heads(2, 2, 80)), (1, 66, Heads(1, 1, 256)),
        (1, 9, Heads(2, 1, 1056)),
    ],
)  # fmt: skip
def test_attention(
    B: int, T: int, heads: Heads, turned: bool, native: Kernels, reference: Kernels
) -> None:
    N, K, H = heads
    angles = rotation(T, H) if turned else None
    qkv_BTX = normal(B, T, (N + 2 * K) * H)

    def of(kernels: Kernels) -> Operation:
        return lambda qkv: kernels.attention(qkv, heads, angles)

    # Queries, keys, probabilities and their gradients are each rounded once on the way.
    compare(of, [qkv_BTX], native, reference, roundings=5.0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("lengths", "heads"),
    [
        ((100,), Heads(2, 2, 32)), ((1, 63, 64, 65, 7), Heads(4, 2, 64)),
        ((3,) * 40, Heads(9, 3, 64)), ((190, 10), Heads(2, 1, 48)), ((1, 1, 98), Heads(1, 1, 6)),
        ((700, 400, 300, 600), Heads(2, 1, 16)),
    ],
)  # fmt: skip
def test_attention_within_documents(
    lengths: tuple[int, ...], heads: Heads, turned: bool, causal: bool, native: Kernels,
    reference: Kernels,
) -> None:  # fmt: skip
    N, K, H = heads
    rows = 2 if sum(lengths) % 2 == 0 else 1
    qkv_BTX = normal(rows, sum(lengths) // rows, (N + 2 * K) * H)
    angles = rotation(max(lengths), H) if turned else None

    def of(kernels: Kernels) -> Operation:
        return lambda qkv: kernels.attention(qkv, heads, angles, Spans(causal, lengths))

    compare(of, [qkv_BTX], native, reference, roundings=5.0)


@pytest.mark.parametrize("T", [1, 64, 100])
def test_attention_both_ways(T: int, native: Kernels, reference: Kernels) -> None:
    heads, qkv_BTX = Heads(3, 1, 32), normal(2, T, 5 * 32)

    def of(kernels: Kernels) -> Operation:
        return lambda qkv: kernels.attention(qkv, heads, rotation(T, 32), Spans(causal=False))

    compare(of, [qkv_BTX], native, reference, roundings=5.0)


def test_attention_of_large_scores_does_not_overflow(native: Kernels, reference: Kernels) -> None:
    heads = Heads(2, 2, 64)
    qkv_BTX = normal(1, 80, 3 * 2 * 64, scale=30.0)
    ours = outcome(lambda qkv: native.attention(qkv, heads, None), [qkv_BTX], torch.bfloat16)
    exact = outcome(lambda qkv: reference.attention(qkv, heads, None), [qkv_BTX], torch.float32)
    assert all(torch.isfinite(each).all() for each in ours)
    assert error(ours[0], exact[0]) < 4 * ROUNDING


def test_attention_takes_what_is_not_contiguous(native: Kernels) -> None:
    heads = Heads(2, 2, 32)
    wide_BTX = normal(2, 40, 3 * 2 * 32 + 8).bfloat16()
    view_BTX = wide_BTX[..., :-8]
    expected = native.attention(view_BTX.contiguous(), heads, None)
    assert torch.equal(native.attention(view_BTX, heads, None), expected)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 70, 140])
def test_attention_passes_on_what_is_not_finite(place: int, wrong: float, native: Kernels) -> None:
    """The warning of a run gone wrong must not be lost: here query, key or value of a position."""
    qkv_BTX = normal(1, 90, 3 * 64).bfloat16()
    qkv_BTX[0, 50, :64] = 1.0
    qkv_BTX[0, 50, place] = wrong
    out_BTX = native.attention(qkv_BTX, Heads(1, 1, 64), None)
    assert not torch.isfinite(out_BTX[0, 50]).all()
    assert torch.isfinite(out_BTX[0, :50]).all() or place == 140


@pytest.mark.parametrize("scale", [1.0, 1 / 640])
@pytest.mark.parametrize(("M", "V"), [(1, 65), (5, 16), (33, 65), (3, 50257), (64, 4096), (4, 1)])
def test_cross_entropy(M: int, V: int, scale: float, native: Kernels, reference: Kernels) -> None:
    logits_MV = normal(M, V, scale=4.0)
    targets_M = torch.randint(V, (M,), generator=torch.Generator().manual_seed(1))
    targets_M[M // 2] = -100 if M > 1 else targets_M[0]
    exact_MV, ours_MV = logits_MV.clone(), logits_MV.bfloat16()
    exact_M = reference.cross_entropy_(exact_MV, targets_M, scale)
    ours_M = native.cross_entropy_(ours_MV, targets_M, scale)
    assert ours_M.dtype == torch.float32
    torch.testing.assert_close(ours_M, exact_M, rtol=1e-5, atol=1e-5)
    assert error(ours_MV.float(), exact_MV) < 3 * ROUNDING or V == 1
    ignored_M = targets_M < 0
    assert (ours_MV[ignored_M] == 0).all() and (ours_M[ignored_M] == 0).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_cross_entropy_passes_on_what_is_not_finite(wrong: float, native: Kernels) -> None:
    logits_MV = normal(2, 70).bfloat16()
    logits_MV[1, 30] = wrong
    losses_M = native.cross_entropy_(logits_MV, torch.tensor([3, 3]), 1.0)
    assert torch.isfinite(losses_M[0]) and not torch.isfinite(losses_M[1])


def test_cross_entropy_of_unlikely_targets(native: Kernels, reference: Kernels) -> None:
    logits_MV = torch.tensor([[0.0, 80.0, -80.0], [200.0, 0.0, -200.0]])
    targets_M = torch.tensor([2, 2])
    ours_M = native.cross_entropy_(logits_MV.bfloat16(), targets_M, 1.0)
    torch.testing.assert_close(ours_M, reference.cross_entropy_(logits_MV, targets_M, 1.0))


@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_a_target_beyond_the_vocabulary_is_refused(
    kernels: str, request: pytest.FixtureRequest
) -> None:
    chosen: Kernels = request.getfixturevalue(kernels)
    with pytest.raises(IndexError):
        chosen.cross_entropy_(normal(2, 10).bfloat16(), torch.tensor([1, 10]), 1.0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 15, 16, 1000, 70_001])
def test_adamw(count: int, precision: torch.dtype, native: Kernels, reference: Kernels) -> None:
    start = normal(count)
    all_moments = [Moments(torch.zeros(count), torch.zeros(count)) for _ in range(3)]
    wide = Master(start.clone(), None)
    masters = [parted(native, start), parted(reference, start), wide]
    for number in range(1, 6):
        gradient = normal(count, seed=number).to(precision)
        step = AdamWStep(1e-2, 0.1, 0.9, 0.95, 1e-8, number, 0.7)
        for kernels, master, moments in zip(
            (native, reference, native), masters, all_moments, strict=True
        ):
            kernels.adamw_(master, moments, gradient, step)
    for moments in all_moments[1:]:
        for found, expected in zip(all_moments[0], moments, strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)
    found = native.values(masters[0])
    for master in masters[1:]:
        torch.testing.assert_close(found, reference.values(master), rtol=2e-6, atol=1e-7)
    assert torch.equal(masters[0].weight, found.bfloat16())


def parted(kernels: Kernels, values: Tensor) -> Master:
    rest = torch.empty(values.shape, dtype=torch.int16)
    master = Master(torch.empty(values.shape, dtype=torch.bfloat16), rest)
    kernels.set_(master, values)
    return master


@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_a_master_in_two_parts_is_the_same_number(
    kernels: str, request: pytest.FixtureRequest
) -> None:
    """Every pattern of the bits that rounding takes, beside weights of both signs, odd and even;
    what lies half way between two weights is one bit more.
    """
    chosen: Kernels = request.getfixturevalue(kernels)
    low = torch.arange(1 << 16, dtype=torch.int32)
    highs = (0x0000, 0x0001, 0x3F80, 0x3F81, 0x7F7F, 0xBF80, 0xBF81)
    for high in highs:
        bits = torch.tensor(high, dtype=torch.uint16).view(torch.int16).to(torch.int32) << 16 | low
        values = bits.view(torch.float32)
        master = parted(chosen, values)
        half = low == 0x8000
        expected = torch.where(half, bits | 1, bits)
        assert torch.equal(chosen.values(master).view(torch.int32), expected)
        rounded = expected.view(torch.float32).bfloat16()
        assert torch.equal(master.weight.view(torch.int16), rounded.view(torch.int16))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 17, 255, 256, 257, 5000])
def test_codes(count: int, signed: bool, native: Kernels, reference: Kernels) -> None:
    levels = torch.linspace(-1.0 if signed else 0.0, 1.0, 256)
    code = Code(levels, (levels[1:] + levels[:-1]) / 2)
    values = normal(count, seed=count) if signed else normal(count, seed=count).square()
    values[: count // 2] = 0.0
    scales = [torch.zeros(-(-count // BLOCK)) for _ in range(2)]
    codes = [
        kernels.encoded(values, each, code)
        for kernels, each in zip((native, reference), scales, strict=True)
    ]
    assert torch.equal(*codes) and torch.equal(*scales)
    back = [kernels.decoded(codes[0], scales[0], code) for kernels in (native, reference)]
    assert torch.equal(*back)


@pytest.mark.parametrize("count", [1, 17, 5000])
def test_accumulate(count: int, native: Kernels, reference: Kernels) -> None:
    sums = [normal(count), normal(count)]
    gradient = normal(count, seed=1).bfloat16()
    native.accumulate_(sums[0], gradient)
    reference.accumulate_(sums[1], gradient)
    assert torch.equal(*sums)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 17, 4096, 100_003])
def test_squared_norm(
    count: int, precision: torch.dtype, native: Kernels, reference: Kernels
) -> None:
    gradient = normal(count).to(precision)
    expected = float(gradient.double().square().sum())
    assert native.squared_norm(gradient) == pytest.approx(expected, rel=1e-6)
    assert reference.squared_norm(gradient) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 65), (700, 16), (40, 1000), (2, 300)])
def test_column_sum(rows: int, columns: int, native: Kernels) -> None:
    from narrows.kernels.native import column_sum

    x_ME = normal(rows, columns)
    assert torch.equal(column_sum(x_ME.bfloat16()), x_ME.double().sum(0).bfloat16()) or (
        error(column_sum(x_ME.bfloat16()).float(), x_ME.sum(0)) < 2 * ROUNDING
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same(threads: int, native: Kernels) -> None:
    """To the bit, but where sums of rows are split: norm's weights and the squared norm."""

    def results() -> list[Tensor]:
        qkv_BTX = normal(2, 70, 4 * 32, scale=2.0)
        attention = outcome(
            lambda qkv: native.attention(qkv, Heads(2, 1, 32), None), [qkv_BTX], torch.bfloat16
        )
        gelu = outcome(lambda h: native.activation(h, "gelu"), [normal(3, 5, 700)], torch.bfloat16)
        logits_MV = normal(9, 500).bfloat16()
        losses_M = native.cross_entropy_(logits_MV, torch.arange(9), 1.0)
        return [*attention, *gelu, logits_MV, losses_M]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = results()
    torch.set_num_threads(threads)
    together = results()
    norm = native.squared_norm(normal(20_000).bfloat16())
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert norm == pytest.approx(float(normal(20_000).double().square().sum()), rel=1e-6)


def test_equal_calls_give_equal_bits(native: Kernels) -> None:
    inputs = (normal(4, 33, 96), normal(4, 33, 96, seed=1), normal(96, seed=2), normal(96, seed=3))

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        return native.add_norm(*given, epsilon=1e-5, centre=True)

    first, second = (outcome(run, inputs, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
