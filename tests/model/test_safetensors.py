from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from narrows.model.folder import FILE, INDEX, files
from narrows.model.safetensors import Safetensors
from narrows.spec.errors import BadInput

from .files import put, safetensors_bytes

TENSORS = {
    "a": torch.arange(6.0).view(2, 3), "b": torch.arange(4.0).bfloat16(),
    "c": torch.arange(3.0).half(), "d": torch.arange(5), "e": torch.empty(0, 4),
}  # fmt: skip
WHOLE = save(TENSORS, metadata={"format": "pt"})


def refused(path: Path, content: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        Safetensors([put(path, content)])
    assert caught.value.hint
    return caught.value


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    source = Safetensors([put(tmp_path / "a", WHOLE)])
    assert set(source.names()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert source.shape(name) == tuple(tensor.shape) and source.dtype(name) == tensor.dtype
        into = torch.empty(tensor.shape)
        source.read(name, into)
        assert into.equal(tensor.float())


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert sorted(Safetensors(files(tmp_path)).names()) == ["a", "b"]
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(BadInput, match="is missing"):
        files(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(BadInput, match="outside"):
        files(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(BadInput, match=f"{INDEX} has no weight_map"):
        files(tmp_path)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match="pickle"):
        files(tmp_path)


def test_two_files_with_one_name_are_refused(tmp_path: Path) -> None:
    one, two = put(tmp_path / "one", WHOLE), put(tmp_path / "two", WHOLE)
    with pytest.raises(BadInput, match="is in"):
        Safetensors([one, two])


def entry(kind: str, shape: list[Any], first: int, last: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, "gaps and overlaps"),
        ({"a": entry("F32", [1], 4, 8)}, "gaps and overlaps"),
        ({"a": entry("F32", [1], 0, 4)}, "gaps and overlaps"),
        ({"a": entry("F32", [3], 0, 8)}, "cannot lie"),
        ({"a": entry("F32", [1 << 62], 0, 8)}, "cannot lie"),
        ({"a": entry("F32", [-2], 0, 8)}, "shape"),
        ({"a": entry("F32", [2.0], 0, 8)}, "shape"),
        ({"a": entry("F32", [2], -8, 0)}, "cannot lie"),
        ({"a": entry("F32", [8], 0, 32)}, "cannot lie"),
        ({"a": entry("Q9", [2], 0, 8)}, "Q9"),
        ({"a": {"dtype": "F32"}}, "does not tell"),
        ({"a": 3}, "does not tell"),
        ([1], "no table"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "no JSON"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(header: Any, why: str, tmp_path: Path) -> None:
    assert why in refused(tmp_path / "a", safetensors_bytes(header, bytes(8))).what


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    assert "claims" in refused(tmp_path / "a", (1 << 40).to_bytes(8, "little") + b"{}").what
    assert "shorter" in refused(tmp_path / "a", b"abc").what


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"has no {FILE}"):
        files(tmp_path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=9))
def test_no_damage_is_worse_than_a_refusal(tmp_path: Path, at: int, put_in: bytes) -> None:
    damaged = WHOLE[:at] + put_in + WHOLE[at + len(put_in) :]
    try:
        source = Safetensors([put(tmp_path / "a", damaged)])
        for name in source.names():
            source.read(name, torch.empty(source.shape(name)))
    except BadInput as error:
        assert error.hint
