from __future__ import annotations

from typing import Any

import msgspec
import pytest

from .equality import DENSE, MODELS, assert_equal, layout_of

pytestmark = pytest.mark.dist
every = pytest.mark.parametrize("name", MODELS)
SHARDINGS: dict[str, dict[str, Any]] = {
    "replicated": {"data": 2},
    "optimizer": {"data": 2, "sharding": "optimizer"},
    "gradients": {"data": 2, "sharding": "gradients"},
    "parameters": {"data": 2, "sharding": "parameters"},
    "kept": {"data": 2, "sharding": "parameters", "reshard": False},
    "hybrid": {"data": 2, "replicas": 2, "sharding": "parameters", "micro_batch": 1},
}


@every
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_data_parallel_ranks_find_the_gradients_of_one(name: str, sharding: str) -> None:
    assert_equal(MODELS[name], layout_of(**SHARDINGS[sharding]))


@every
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("tensor", [2, 4])
def test_tensor_parallel_ranks_find_the_gradients_of_one(
    name: str, tensor: int, sequence: bool
) -> None:
    layout = layout_of(tensor=tensor, sequence_parallel=sequence)
    if name == "experts" and not sequence:
        with pytest.raises(AssertionError, match="same tokens to the experts"):
            assert_equal(MODELS[name], layout)
        return
    assert_equal(MODELS[name], layout)


@every
def test_sharded_tensor_parallel_ranks_do_too(name: str) -> None:
    assert_equal(MODELS[name], layout_of(tensor=2, data=2, sharding="parameters"))


WET = {
    "rotary": msgspec.structs.replace(DENSE, dropout=0.2),
    "learned": msgspec.structs.replace(MODELS["gpt"], dropout=0.2),
}
DROPS: dict[str, dict[str, Any]] = {
    "one": {"micro_batch": 4, "recompute": "full"},
    "data": {"data": 2},
    "tensor": {"tensor": 2},
    "context": {"context": 2},
    "pieces of parts": {"context": 2, "tensor": 2, "exchange": "all_to_all"},
    "parameters": {"data": 2, "context": 2, "sharding": "parameters", "recompute": "full"},
}


@pytest.mark.parametrize("sharding", ["gradients", "parameters"])
def test_shards_in_the_hosts_memory_have_the_gradients_of_one(sharding: str) -> None:
    assert_equal(DENSE, layout_of(data=2, sharding=sharding, offload="host"))


@pytest.mark.parametrize("name", DROPS)
def test_what_is_dropped_does_not_depend_on_the_layout(name: str) -> None:
    spec = WET["learned" if name in ("tensor", "context") else "rotary"]
    assert_equal(spec, layout_of(**DROPS[name]))
