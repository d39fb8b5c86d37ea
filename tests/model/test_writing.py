from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.model import describing, ggml, gguf, hugging_face, safetensors
from narrows.model.blocks import BLOCKS
from narrows.model.folder import files
from narrows.model.opening import build, opened
from narrows.model.transformer import Transformer
from narrows.model.writing import outgoing
from narrows.spec.errors import BadInput
from narrows.spec.model import GELU, RMSNorm

from .configs import read
from .conftest import built, spec
from .families import CONFIGS, FOR_GGUF, config

F32 = BLOCKS[0]


def weights(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def read_back(path: Path) -> Transformer:
    original = opened(path)
    return build(original, torch.float32, torch.device("cpu"))


def same(one: dict[str, Tensor], other: dict[str, Tensor], *, kept_from_one: bool) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # Gemma's norms are kept as their distance from one, which rounds.
        torch.testing.assert_close(
            tensor, other[name], rtol=0, atol=1e-6 if kept_from_one and "norm" in name else 0
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_comes_back_from_a_folder_as_it_was(name: str, tmp_path: Path) -> None:
    shape = read(tmp_path, config(name))
    model = built(shape)
    kind = config(name)["model_type"]
    tensors = outgoing(weights(model), shape, hugging_face.naming(kind, shape))
    safetensors.write(tmp_path, tensors, torch.float32, most=100_000)
    assert len(files(tmp_path)) > 1
    same(weights(model), weights(read_back(tmp_path)), kept_from_one=kind.startswith("gemma"))


@pytest.mark.parametrize("name", FOR_GGUF)
def test_a_family_comes_back_from_a_gguf_file_as_it_was(name: str, tmp_path: Path) -> None:
    shape = read(tmp_path, {**config(name), **FOR_GGUF[name]})
    model, kind = built(shape), config(name)["model_type"]
    assert ggml.kind_of(shape, kind) == kind
    tensors = [*ggml.factors(shape), *outgoing(weights(model), shape, ggml.NAMINGS[kind])]
    path = tmp_path / "a.gguf"
    gguf.write(path, ggml.facts(kind, shape), [(each, F32) for each in tensors])
    assert (opened(path).kind, opened(path).spec) == (kind, shape)
    same(weights(model), weights(read_back(path)), kept_from_one=False)


def test_what_no_architecture_computes_is_refused() -> None:
    with pytest.raises(BadInput, match="no architecture of GGUF") as caught:
        ggml.kind_of(spec("llama", norm=RMSNorm(), feed_forward=GELU()))
    assert "narrows export MODEL --to FOLDER" in str(caught.value.hint)


def test_a_weight_that_is_missing_is_named() -> None:
    shape = spec()
    held = weights(built(shape))
    del held["blocks.1.out.weight"]
    with pytest.raises(BadInput, match=r"lack blocks\.1\.out\.weight"):
        outgoing(held, shape, hugging_face.LLAMA)


def test_a_parameter_without_a_place_is_named() -> None:
    shape = spec("gpt2")
    with pytest.raises(BadInput, match="no place for positions"):
        outgoing(weights(built(shape)), shape, hugging_face.LLAMA)


def test_each_weight_is_asked_for_once_and_in_turn(tmp_path: Path) -> None:
    shape, asked = spec(), list[str]()
    held = weights(built(shape))

    class Counted(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            asked.append(name)
            return held[name]

    tensors = outgoing(Counted(held), shape, hugging_face.LLAMA)
    assert asked == []
    safetensors.write(tmp_path, tensors, torch.bfloat16)
    assert asked == list(held)
    found = safetensors.Safetensors(files(tmp_path))
    assert found.dtype("model.norm.weight") == torch.bfloat16


def test_files_say_the_longest_context_and_are_read_as_far_as_positions_are_not_stretched(
    tmp_path: Path,
) -> None:
    told = config("phi3 stretched pair by pair")
    own = {"original_max_position_embeddings": 32}
    rope = {**told["rope_parameters"], **own}
    whole = read(tmp_path, {**told, **own, "rope_parameters": rope})
    shape = msgspec.structs.replace(whole, context=32)
    assert describing.kind_of(shape, "phi3") == "phi3"
    again = describing.config(shape, "phi3")
    assert (again["max_position_embeddings"], again["original_max_position_embeddings"]) == (64, 32)
    assert read(tmp_path, again) == whole
    path, kind = tmp_path / "a.gguf", "phi3"
    tensors = [*ggml.factors(shape), *outgoing(weights(built(shape)), shape, ggml.NAMINGS[kind])]
    assert ggml.kind_of(shape, kind) == kind
    gguf.write(path, ggml.facts(kind, shape), [(each, F32) for each in tensors])
    assert opened(path).spec == shape
