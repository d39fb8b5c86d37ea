from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.hugging_face import LLAMA
from narrows.model.initial import initialise
from narrows.model.naming import Naming
from narrows.model.reading import fill
from narrows.model.safetensors import Safetensors
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.model import ModelSpec, llama

SPEC = llama(layers=2, width=16, heads=4, kv_heads=2, vocabulary=24, context=8)
LIKE = "take configuration and weights of one model"


def theirs() -> dict[str, Tensor]:
    """Tensors of a Llama of that shape."""
    F, found = SPEC.feed_forward_width, {"model.embed_tokens.weight": torch.randn(24, 16)}
    for layer in range(2):
        block = f"model.layers.{layer}."
        sizes = {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "o_proj": (16, 16)}
        found |= {f"{block}self_attn.{n}.weight": torch.randn(*s) for n, s in sizes.items()}
        sizes = {"gate_proj": (F, 16), "up_proj": (F, 16), "down_proj": (16, F)}
        found |= {f"{block}mlp.{n}.weight": torch.randn(*s) for n, s in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}{norm}.weight"] = torch.randn(16)
    return {**found, "model.norm.weight": torch.randn(16)}


def read(tensors: dict[str, Tensor], tmp_path: Path, naming: Naming = LLAMA) -> Transformer:
    save_file(tensors, tmp_path / "a.safetensors")
    model = Transformer(SPEC, load("torch"))
    source = Safetensors([tmp_path / "a.safetensors"])
    fill(dict(model.named_parameters()), SPEC, naming, source)
    return model


def refused(tensors: dict[str, Tensor], tmp_path: Path, spec: ModelSpec = SPEC) -> str:
    save_file(tensors, tmp_path / "a.safetensors")
    model = Transformer(spec, load("torch"))
    initialise(model, seed=0)
    before = {name: each.clone() for name, each in model.named_parameters()}
    with pytest.raises(BadInput) as caught:
        fill(dict(model.named_parameters()), spec, LLAMA, Safetensors([tmp_path / "a.safetensors"]))
    assert caught.value.hint == LIKE
    assert all(each.equal(before[name]) for name, each in model.named_parameters())
    return caught.value.what


def test_theirs_are_joined_by_rows(tmp_path: Path) -> None:
    tensors = theirs()
    model = read(tensors, tmp_path)
    parts = [tensors[f"model.layers.1.self_attn.{each}_proj.weight"] for each in "qkv"]
    assert model.get_parameter("blocks.1.qkv.weight").equal(torch.cat(parts))
    assert model.head_VD.equal(tensors["model.embed_tokens.weight"])


def test_names_of_a_bare_model_are_known(tmp_path: Path) -> None:
    tensors = {name.removeprefix("model."): tensor for name, tensor in theirs().items()}
    assert read(tensors, tmp_path).norm is not None


def test_what_a_tied_model_has_twice_is_passed_over(tmp_path: Path) -> None:
    tensors = theirs()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    read(tensors, tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = theirs()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    assert "lack model.layers.1.mlp.up_proj.weight" in refused(tensors, tmp_path)


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    tensors = {**theirs(), "model.layers.0.self_attn.q_proj.bias": torch.ones(16)}
    assert "have model.layers.0.self_attn.q_proj.bias" in refused(tensors, tmp_path)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    tensors = {**theirs(), "model.norm.weight": torch.ones(17)}
    assert "model.norm.weight is [17]" in refused(tensors, tmp_path)
    tensors = {**theirs(), "model.norm.weight": torch.ones(1, 16)}
    assert "model.norm.weight is [1, 16]" in refused(tensors, tmp_path)
    tensors = {**theirs(), "model.layers.0.self_attn.v_proj.weight": torch.ones(4, 16)}
    assert "28 of 32 rows of blocks.0.qkv.weight" in refused(tensors, tmp_path)
    tensors = {**theirs(), "model.layers.0.self_attn.v_proj.weight": torch.ones(12, 16)}
    assert "v_proj.weight is [12, 16]" in refused(tensors, tmp_path)
