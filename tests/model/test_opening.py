from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from narrows.model import ggml, gguf
from narrows.model.blocks import BLOCKS
from narrows.model.configuration import read_config
from narrows.model.opening import build, opened
from narrows.model.positions import frequencies
from narrows.model.writing import outgoing
from narrows.spec.errors import BadInput

from .configs import Config
from .conftest import built, spec
from .files import gguf_bytes, put

BERT: Config = {
    "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 12, "vocab_size": 20,
}  # fmt: skip
PHI3: Config = {
    "model_type": "phi3", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 12, "vocab_size": 20,
}  # fmt: skip


def folder(path: Path, config: Config, tensors: dict[str, Any] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors or {"x": torch.ones(1)}, path / "model.safetensors")
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        opened(path)
    assert caught.value.hint
    return caught.value.what


def bert() -> dict[str, torch.Tensor]:
    block = "encoder.layer.0."
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (20, 8), "embeddings.LayerNorm.weight": (8,),
        "embeddings.position_embeddings.weight": (12, 8), "embeddings.LayerNorm.bias": (8,),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }  # fmt: skip
    products = {
        "attention.self.query": (8, 8), "attention.self.key": (8, 8),
        "attention.self.value": (8, 8), "attention.output.dense": (8, 8),
        "intermediate.dense": (16, 8), "output.dense": (8, 16),
    }  # fmt: skip
    for name, shape in products.items():
        shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"{block}{name}.weight": (8,), f"{block}{name}.bias": (8,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_a_model_without_a_pooler_has_none(tmp_path: Path) -> None:
    tensors = bert()
    original = opened(folder(tmp_path, BERT, tensors))
    assert original.kind == "bert" and not original.spec.pooler
    model = build(original, torch.float32, torch.device("cpu"))
    assert model.tokens.weight.equal(tensors["embeddings.word_embeddings.weight"])
    pooler = {"pooler.dense.weight": torch.randn(8, 8), "pooler.dense.bias": torch.randn(8)}
    assert opened(folder(tmp_path, BERT, tensors | pooler)).spec.pooler


def test_weights_in_whole_numbers_are_refused(tmp_path: Path) -> None:
    # Which positions there are is no weight.
    tensors = bert() | {"embeddings.position_ids": torch.arange(12)[None]}
    original = opened(folder(tmp_path, BERT, tensors))
    build(original, torch.float32, torch.device("cpu"))
    norm = "encoder.layer.0.output.LayerNorm.weight"
    tensors[norm] = torch.ones(8, dtype=torch.int32)
    original = opened(folder(tmp_path, BERT, tensors))
    with pytest.raises(BadInput, match=f"model.safetensors has the weight {norm} in I32") as caught:
        build(original, torch.float32, torch.device("cpu"))
    assert caught.value.hint


LONGROPE = {"type": "longrope", "short_factor": [1.0, 2], "long_factor": [2.0] * 2}


def test_positions_stretched_pair_by_pair_are_read_as_far_as_they_are_not(tmp_path: Path) -> None:
    config = {**PHI3, "rope_scaling": LONGROPE, "original_max_position_embeddings": 3}
    path = folder(tmp_path, config, {"x": torch.ones(1000)})
    whole, spec = read_config(path), opened(path).spec
    assert (whole.context, spec.context) == (12, 3)
    assert spec == msgspec.structs.replace(whole, context=3)
    cpu = torch.device("cpu")
    (short_H, growth), (long_H, _) = (frequencies(each, cpu) for each in (spec, whole))
    plain_H = 10_000.0 ** -(torch.arange(2, dtype=torch.float64) / 2)
    torch.testing.assert_close(short_H, plain_H / torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(long_H, plain_H / 2.0)
    assert growth == pytest.approx(math.sqrt(1 + math.log(4) / math.log(3)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"long_factor": [1.0]}, "long_factor has 1 numbers, and a head 2 pairs"),
        ({"short_factor": None}, "short_factor is no list"),
        ({"short_factor": [1.0, 0.0]}, "short_factor is no list of numbers above 0"),
        ({"short_factor": [1.0, True]}, "short_factor is no list of numbers above 0"),
    ],
)
def test_factors_of_other_pairs_are_refused(tmp_path: Path, change: Config, why: str) -> None:
    own = {"original_max_position_embeddings": 3}
    config = {**PHI3, **own, "rope_scaling": {**LONGROPE, **change}}
    assert why in refused(folder(tmp_path, config))


def test_factors_without_the_context_that_they_stretch_are_refused(tmp_path: Path) -> None:
    what = refused(folder(tmp_path, {**PHI3, "rope_scaling": LONGROPE}))
    assert "original_max_position_embeddings is missing" in what


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    packed = {**PHI3, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert "packed by gptq" in refused(folder(tmp_path, packed))


def test_a_family_that_can_be_planned_alone_is_refused(tmp_path: Path) -> None:
    glm = {
        **PHI3, "model_type": "glm4_moe", "num_key_value_heads": 2, "head_dim": 4,
        "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 4,
        "n_shared_experts": 1, "first_k_dense_replace": 0,
    }  # fmt: skip
    assert "family glm4_moe" in refused(folder(tmp_path, glm))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "is not a run folder" in refused(tmp_path)
    assert "is a pickle" in refused(put(tmp_path / "a.bin", b"x"))
    alien = gguf_bytes({"general.architecture": "rwkv"}, {})
    assert "architecture 'rwkv'" in refused(put(tmp_path / "a.gguf", alien))
    bare = gguf_bytes({"general.architecture": "llama"}, {})
    assert "has no token_embd.weight" in refused(put(tmp_path / "b.gguf", bare))


def test_a_link_to_a_model_is_the_model(tmp_path: Path) -> None:
    path, link = tmp_path / "a.gguf", tmp_path / "b.gguf"
    shape = spec()
    weights = {name: each.detach() for name, each in built(shape).named_parameters()}
    tensors = outgoing(weights, shape, ggml.NAMINGS["llama"])
    gguf.write(path, ggml.facts("llama", shape), [(each, BLOCKS[0]) for each in tensors])
    link.symlink_to(path)
    assert opened(link).digest() == opened(path).digest()
