from __future__ import annotations

import numpy as np
import pytest
import torch

from narrows.infer.loading import Generator
from narrows.infer.torch_core import TorchCore
from narrows.plan.answer import cache_bytes
from narrows.spec.machine import CachePrecision

from .conftest import CONTEXT

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def test_a_prompt_read_and_tokens_added_give_the_logits_of_all(generator: Generator) -> None:
    core = TorchCore(generator.model, 2)
    first_V = core.prefill(1, PROMPT[:5], 0)
    then_V = core.decode([1], PROMPT[5:6])[0]
    whole_TV = generator.model(torch.tensor([PROMPT]))[0]
    torch.testing.assert_close(torch.from_numpy(first_V), whole_TV[4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(then_V), whole_TV[5], rtol=1e-4, atol=1e-4)
    assert core.length(1) == 6 and core.length(0) == 0
    assert (core.context, core.vocabulary) == (CONTEXT, generator.model.spec.vocabulary)


def test_an_int8_cache_says_nearly_what_a_whole_one_says(generator: Generator) -> None:
    whole, core = TorchCore(generator.model, 1), TorchCore(generator.model, 1, kept="int8")
    expected_V, found_V = (each.prefill(0, PROMPT, 0) for each in (whole, core))
    assert 0.0 < np.linalg.norm(found_V - expected_V) / np.linalg.norm(expected_V) < 0.05


def test_a_slot_says_the_same_to_the_bit_beside_others(generator: Generator) -> None:
    alone = TorchCore(generator.model, 1)
    alone.prefill(0, PROMPT, 0)
    wanted_V = alone.decode([0], [7])[0]
    core = TorchCore(generator.model, 3)
    for slot in range(3):
        core.prefill(slot, PROMPT[slot:], 0)
    found_MV = core.decode([2, 0, 1], [11, 7, 12])
    assert np.array_equal(found_MV[1], wanted_V)
    assert not np.array_equal(found_MV[0], wanted_V)


@pytest.mark.parametrize("kept", [None, "int8"])
def test_a_copy_goes_on_as_its_source_and_a_cut_forgets(
    generator: Generator, kept: CachePrecision | None
) -> None:
    core = TorchCore(generator.model, 2, kept=kept)
    core.prefill(0, PROMPT, 0)
    core.copy(0, 1, 4)
    assert core.length(1) == 4
    core.cut(0, 4)
    from_source_V, from_copy_V = (core.prefill(slot, [8, 8], 4) for slot in (0, 1))
    assert np.array_equal(from_source_V, from_copy_V)
    core.clear(0)
    assert core.length(0) == 0
    assert np.array_equal(core.prefill(0, PROMPT, 0), TorchCore(
        generator.model, 1, kept=kept
    ).prefill(0, PROMPT, 0))  # fmt: skip


@pytest.mark.parametrize("kept", [None, "int8"])
def test_the_caches_take_what_is_announced(
    generator: Generator, kept: CachePrecision | None
) -> None:
    core, shape = TorchCore(generator.model, 3, 16, kept), generator.model.spec
    taken = sum(part.nbytes for caches in core._caches for cache in caches for part in cache)
    assert 3 * cache_bytes(shape, 16, 4, kept) == taken == core.cache_bytes
