from __future__ import annotations

from pathlib import Path

import pytest

from narrows.infer.ready import Model
from narrows.infer.server import need as module
from narrows.infer.server.need import need, refuse_too_large, sizes
from narrows.infer.torch_core import TorchCore
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.machine import CachePrecision, Fact
from narrows.spec.units import Bytes
from tests.infer.conftest import CONTEXT, MakeRun, built, spec


def free(patch: pytest.MonkeyPatch, count: float) -> None:
    fact = Fact[Bytes](value=Bytes(count), basis="measured", source="test")
    patch.setattr(module, "memory_free", lambda: fact)


@pytest.mark.parametrize("kept", [None, "int8"])
def test_weights_and_caches_are_what_they_will_be(
    make_run: MakeRun, kept: CachePrecision | None
) -> None:
    found = need(sizes(Model(make_run(), None)), 3, 33, cache=kept)
    model = built(spec())
    assert found.weights == sum(each.nbytes for each in model.parameters())
    core = TorchCore(model, 3, 33, kept)
    held = sum(part.nbytes for caches in core._caches for cache in caches for part in cache)
    assert found.slot * found.slots == held
    assert str(found).startswith("weights ") and "(3 slots of 33 tokens)" in str(found)


def test_a_context_the_model_does_not_know_is_refused(make_run: MakeRun) -> None:
    run = sizes(Model(make_run(), None))
    with pytest.raises(BadInput, match=f"knows 2 to {CONTEXT}"):
        need(run, 1, CONTEXT + 1)
    assert need(run, 1, None).context == CONTEXT


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    found, path = module.Need(3e8, 2e8, 8, 4000), Path("m.gguf")
    free(monkeypatch, found.total)
    refuse_too_large(found, path)
    for left, hint in (
        (4.9 * 2e8, "narrows serve m.gguf --slots 4"),
        (0.5 * 2e8, "narrows serve m.gguf --slots 1 --context 2000"),
        (0.0, "a smaller model, or one with fewer bits"),
    ):
        free(monkeypatch, found.total - 8 * 2e8 + left)
        with pytest.raises(DoesNotFit, match="2.3 GB needed") as told:
            refuse_too_large(found, path)
        assert told.value.hint == hint and told.value.exit_code == 3
