from __future__ import annotations

import pytest
import torch

from narrows.adapt.apply import Adapted
from narrows.adapt.merge import merge, merge_proven
from narrows.spec.adapter import Base, Learning, LowRank, Rule, Target
from narrows.spec.errors import RunFailed

from .conftest import GPT2, SPECS, made, tokens, tuned

SOME: tuple[Target, ...] = ("query", "value", "down")


@pytest.mark.parametrize("base", [None, "int8", "nf4"])
@pytest.mark.parametrize("rule", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("targets", [None, SOME], ids=["all", "some"])
@pytest.mark.parametrize("kind", SPECS)
def test_a_merged_model_computes_the_same(
    kind: str, targets: tuple[Target, ...] | None, rule: Rule, base: Base | None
) -> None:
    learning = Learning(adapter=LowRank(rank=4, rule=rule, targets=targets, base=base))
    model, read = tuned(made(SPECS[kind]), learning), tokens(SPECS[kind])
    before = model(read)
    assert merge_proven(model, read) < 1e-5
    torch.testing.assert_close(model(read), before, rtol=1e-4, atol=1e-5)
    plain = made(SPECS[kind])
    names = {name for name, _ in plain.named_parameters()}
    assert {name for name, _ in model.named_parameters()} == names
    assert not torch.allclose(plain(read), before, atol=1e-2)


def test_in_bf16_the_difference_is_that_of_rounding() -> None:
    model = tuned(made(GPT2, dtype=torch.bfloat16), Learning(adapter=LowRank(rank=4)))
    assert 0.0 < merge_proven(model) < 3e-2


def test_a_wrong_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned(made(GPT2), Learning(adapter=LowRank(rank=4)))
    right = Adapted.merged
    monkeypatch.setattr(Adapted, "merged", lambda self: right(self) * 1.001)
    with pytest.raises(RunFailed, match=r"merging blocks.0.qkv gives another product: 1.0e-03"):
        merge(model)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = tuned(made(GPT2), Learning(adapter=LowRank(rank=4)))
    with torch.no_grad():
        model.blocks[1].up.b[0, 0] = torch.nan
    with pytest.raises(RunFailed, match="blocks.1.up"):
        merge(model)
