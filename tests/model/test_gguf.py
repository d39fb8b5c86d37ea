from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from narrows.model import gguf
from narrows.model.blocks import BLOCKS
from narrows.model.writing import Outgoing
from narrows.spec.errors import BadInput

from .files import gguf_bytes, put

FACTS = {
    "general.architecture": "llama", "a.flag": True, "a.count": 7, "a.number": 0.5,
    "a.words": ["one", "zwei", "三"], "a.numbers": [1, 2, 3],
}  # fmt: skip
VALUES = torch.arange(6, dtype=torch.float32)
WHOLE = gguf_bytes(
    FACTS,
    {
        "first": ((2, 3), 0, VALUES.numpy().tobytes()),
        "second": ((4,), 30, VALUES[:4].bfloat16().view(torch.int16).numpy().tobytes()),
    },
)


def refused(path: Path, content: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        gguf.opened(put(path, content))
    assert caught.value.hint
    return caught.value


def test_a_file_says_what_was_written(tmp_path: Path) -> None:
    file = gguf.opened(put(tmp_path / "a.gguf", WHOLE))
    assert file.facts == FACTS
    assert {name: file.shape(name) for name in file.names()} == {"first": (2, 3), "second": (4,)}
    first, second = torch.empty(2, 3), torch.empty(4)
    file.read("first", first)
    file.read("second", second)
    assert first.equal(VALUES.view(2, 3)) and second.equal(VALUES[:4])


def test_values_come_in_the_type_that_is_wanted(tmp_path: Path) -> None:
    into = torch.empty(2, 3, dtype=torch.float16)
    gguf.opened(put(tmp_path / "a.gguf", WHOLE)).read("first", into)
    assert into.equal(VALUES.half().view(2, 3))


@pytest.mark.parametrize("length", range(0, len(WHOLE) - 24, 7))
def test_a_file_that_is_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    refused(tmp_path / "a.gguf", WHOLE[:length])


def test_what_a_header_claims_is_held_against_the_file(tmp_path: Path) -> None:
    path, much = tmp_path / "a.gguf", 1 << 60
    start = b"GGUF" + struct.pack("<I", 3)
    assert "claims" in refused(path, start + struct.pack("<QQ", much, 0)).what
    assert "claims" in refused(path, start + struct.pack("<QQ", 0, much)).what
    assert "version 9" in refused(path, b"GGUF" + struct.pack("<IQQ", 9, 0, 0)).what
    assert "does not begin" in refused(path, b"PK\3\4" + bytes(40)).what
    assert "ends within" in refused(path, start + struct.pack("<QQQ", 0, 1, much) + bytes(9)).what
    long_list = struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, much) + bytes(64)
    assert "claims" in refused(path, start + long_list).what


def test_a_tensor_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    content = VALUES.numpy().tobytes()
    assert "type 99" in refused(path, gguf_bytes({}, {"a": ((6,), 99, content)})).what
    assert "ends before" in refused(path, gguf_bytes({}, {"a": ((6000, 6000), 0, content)})).what
    assert "ends before" in refused(path, gguf_bytes({}, {"a": ((1 << 62, 32), 0, content)})).what
    assert "shape" in refused(path, gguf_bytes({}, {"a": ((33,), 2, content)})).what
    assert "shape" in refused(path, gguf_bytes({}, {"a": ((0,), 0, content)})).what
    shifted = WHOLE.replace(struct.pack("<IQ", 30, 32), struct.pack("<IQ", 30, 37))
    assert "multiple" in refused(path, shifted).what


def test_an_absent_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        gguf.opened(tmp_path / "none.gguf")
    assert "is empty" in refused(tmp_path / "a.gguf", b"").what


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=9))
def test_no_damage_is_worse_than_a_refusal(tmp_path: Path, at: int, put_in: bytes) -> None:
    damaged = WHOLE[:at] + put_in + WHOLE[at + len(put_in) :]
    try:
        file = gguf.opened(put(tmp_path / "a.gguf", damaged))
        for name in file.names():
            file.read(name, torch.empty(file.shape(name)))
    except BadInput as error:
        assert error.hint


def test_what_is_written_is_read(tmp_path: Path) -> None:
    facts = {**FACTS, "a.negative": -3, "a.wide": 1 << 40, "a.flags": [True, False], "a.none": [],
             "a.fractions": [0.5, -1.0], "a.bytes": "\udcff"}  # fmt: skip
    values = torch.arange(96, dtype=torch.float32).view(3, 32)
    tensors = [
        (Outgoing("first", (3, 32), lambda: values), BLOCKS[0]),
        (Outgoing("second", (3, 32), lambda: values), BLOCKS[8]),
        (Outgoing("third", (5,), lambda: values[0, :5]), BLOCKS[30]),
    ]
    gguf.write(tmp_path / "a.gguf", facts, tensors)
    file = gguf.opened(tmp_path / "a.gguf")
    assert file.facts == facts and file.names() == ["first", "second", "third"]
    first, third = torch.empty(3, 32), torch.empty(5)
    file.read("first", first)
    file.read("third", third)
    assert first.equal(values) and third.equal(values[0, :5])


def test_what_is_written_is_what_the_reference_reads(tmp_path: Path) -> None:
    reference = pytest.importorskip("gguf", reason="the reference reader")
    facts = {key: value for key, value in FACTS.items() if key != "general.architecture"}
    facts = {"general.architecture": "llama", **facts, "a.wide": 1 << 40, "a.flags": [True, False]}
    tensors = [(Outgoing("first", (2, 3), lambda: VALUES.view(2, 3)), BLOCKS[0])]
    gguf.write(tmp_path / "a.gguf", facts, tensors)
    found = reference.GGUFReader(tmp_path / "a.gguf")
    fields = {name: each.contents() for name, each in found.fields.items() if "GGUF" not in name}
    assert fields == facts
    assert found.tensors[0].data.tolist() == VALUES.view(2, 3).tolist()
