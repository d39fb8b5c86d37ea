from __future__ import annotations

import numpy as np
import pytest
import torch

from narrows.model.blocks import BLOCKS, packed, unpack

gguf = pytest.importorskip("gguf", reason="the gguf package, whose reader is the reference")
NUMBERS = np.random.default_rng(0)


def halves(block: np.ndarray, at: int) -> None:
    """Put scales in place that are numbers, which not all bytes are."""
    block[:, at : at + 2] = NUMBERS.normal(size=(len(block), 1)).astype("<f2").view(np.uint8)


SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208]}  # fmt: skip


@pytest.mark.parametrize("number", [n for n, block in BLOCKS.items() if block.values > 1])
def test_blocks_mean_what_the_reference_says(number: int) -> None:
    block = BLOCKS[number]
    packed = NUMBERS.integers(0, 256, size=(100, block.size), dtype=np.uint8)
    for at in SCALES[block.name]:
        halves(packed, at)
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(number))
    found = torch.empty(100, block.values)
    unpack(memoryview(packed.copy()).cast("B"), block, found)
    assert np.array_equal(found.numpy(), expected)
    assert np.abs(expected).max() > 1


def test_sizes_are_the_reference_s() -> None:
    for number, block in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == block.name
        assert gguf.GGML_QUANT_SIZES[kind] == (block.values, block.size)


@pytest.mark.parametrize("number", [n for n, block in BLOCKS.items() if block.pack])
def test_values_are_packed_as_the_reference_packs_them(number: int) -> None:
    block = BLOCKS[number]
    values = NUMBERS.normal(size=(400, block.values)).astype(np.float32)
    values[0], values[1] = 0.0, 3.0
    values[2, ::2] = 0.0
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType(number))
    found = torch.cat(list(packed(torch.from_numpy(values), block)))
    assert np.array_equal(found.numpy(), expected.flatten())


@pytest.mark.parametrize("number", [n for n, block in BLOCKS.items() if block.dtype])
def test_plain_values_are_rounded_to_the_type(number: int) -> None:
    block, values = BLOCKS[number], torch.randn(7, 5)
    found = torch.cat(list(packed(values.t(), block)))
    assert block.dtype is not None
    assert found.view(block.dtype).equal(values.t().flatten().to(block.dtype))
