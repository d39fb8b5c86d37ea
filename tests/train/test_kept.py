"""What is kept in fewer bits comes back as near as its bits allow."""

from __future__ import annotations

import pytest
import torch

from narrows.kernels.interface import Master
from narrows.kernels.reference import TorchKernels
from narrows.spec.optimizer import BLOCK, Kept
from narrows.train.kept import State, code, rooms
from narrows.train.offload import OnDevice


def there_and_back(values: torch.Tensor, *, signed: bool) -> torch.Tensor:
    scales = torch.zeros(-(-values.numel() // BLOCK))
    meant = code(signed, values.device)
    codes = TorchKernels().encoded(values, scales, meant)
    assert codes.dtype == torch.uint8
    return TorchKernels().decoded(codes, scales, meant)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000])
def test_eight_bits_miss_by_little_of_the_block_s_largest(count: int, signed: bool) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    values = values if signed else values**2
    back = there_and_back(values, signed=signed)
    for start in range(0, count, BLOCK):
        block, found = values[start : start + BLOCK], back[start : start + BLOCK]
        # Codes of the uppermost decade are 0.9 / 64 apart, or half of that without a sign.
        most = block.abs().max() * (0.9 / 64 if signed else 0.9 / 128)
        assert (block - found).abs().max() <= most / 2 * 1.01


def test_small_values_keep_their_size_beside_a_large_one() -> None:
    values = torch.full((BLOCK,), 1e-4)
    values[0] = 1.0
    back = there_and_back(values, signed=False)
    assert back[0] == 1.0
    torch.testing.assert_close(back[1:], values[1:], rtol=0.15, atol=0.0)


def test_nought_and_the_largest_stay_what_they_are() -> None:
    values = torch.zeros(600)
    values[7], values[300] = -3.0, 2.5
    back = there_and_back(values, signed=True)
    assert back[300] == 2.5 and int((back != 0).sum()) == 2
    # There is no code for -1: the nearest misses by half a step.
    assert float(back[7]) == pytest.approx(-3.0, rel=0.01)
    assert torch.equal(there_and_back(torch.zeros(10), signed=True), torch.zeros(10))


def made(what: Kept, weight: torch.Tensor) -> State:
    place = OnDevice(weight.device)
    place.reserve(rooms(what, "x"))
    return State(what, "x", Master(weight, None), TorchKernels(), place)


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("kind", ["first", "second"])
def test_a_state_is_nought_at_first_and_keeps_what_was_changed(kind: str, bits: int) -> None:
    what = Kept(kind, (70, 100), bits)  # type: ignore[arg-type]
    state = made(what, torch.ones(70, 100))
    with state.opened(0, 7000) as values:
        assert torch.equal(values, torch.zeros(7000))
    with state.opened(512, 1024) as values:
        values.fill_(0.5)
    with state.opened(0, 7000) as values:
        assert values.dtype == torch.float32
        assert torch.equal(values.nonzero().flatten(), torch.arange(512, 1024))
        assert set(values[512:1024].tolist()) == {0.5}


def test_an_average_begins_with_the_weights() -> None:
    master = torch.randn(4, 5)
    state = made(Kept("average", (4, 5)), master)
    assert torch.equal(state.values, master) and state.values is not master
