from __future__ import annotations

import torch

from narrows.infer.loading import Generator
from narrows.infer.torch_core import TorchCore, cache_bytes

from .conftest import CONTEXT

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def test_a_prompt_read_and_tokens_added_give_the_logits_of_all(generator: Generator) -> None:
    core = TorchCore(generator.model, 2)
    first_V = core.prefill(1, PROMPT[:5], 0)
    then_V = core.decode([1], PROMPT[5:6])[0]
    whole_TV = generator.model(torch.tensor([PROMPT]))[0]
    torch.testing.assert_close(first_V, whole_TV[4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(then_V, whole_TV[5], rtol=1e-4, atol=1e-4)
    assert core.length(1) == 6 and core.length(0) == 0
    assert (core.context, core.vocabulary) == (CONTEXT, generator.model.spec.vocabulary)


def test_a_slot_says_the_same_to_the_bit_beside_others(generator: Generator) -> None:
    alone = TorchCore(generator.model, 1)
    alone.prefill(0, PROMPT, 0)
    wanted_V = alone.decode([0], [7])[0]
    core = TorchCore(generator.model, 3)
    for slot in range(3):
        core.prefill(slot, PROMPT[slot:], 0)
    found_MV = core.decode([2, 0, 1], [11, 7, 12])
    assert torch.equal(found_MV[1], wanted_V)
    assert not torch.equal(found_MV[0], wanted_V)


def test_a_copy_goes_on_as_its_source_and_a_cut_forgets(generator: Generator) -> None:
    core = TorchCore(generator.model, 2)
    core.prefill(0, PROMPT, 0)
    core.copy(0, 1, 4)
    assert core.length(1) == 4
    core.cut(0, 4)
    from_source_V, from_copy_V = (core.prefill(slot, [8, 8], 4) for slot in (0, 1))
    assert torch.equal(from_source_V, from_copy_V)
    core.clear(0)
    assert core.length(0) == 0
    assert torch.equal(core.prefill(0, PROMPT, 0), TorchCore(generator.model, 1).prefill(
        0, PROMPT, 0
    ))  # fmt: skip


def test_the_caches_take_what_is_announced(generator: Generator) -> None:
    core, shape = TorchCore(generator.model, 3, 16), generator.model.spec
    taken = sum(part.nbytes for caches in core._caches for cache in caches for part in cache)
    assert cache_bytes(shape, 4, 3, 16) == taken
