"""Model files that lie about what they hold: a refusal with a hint, in little memory.

Facts, settings, shapes and places of a whole model's files are replaced by what they cannot be;
then the model is loaded, which reads all of it and asks it for a token.
"""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.infer.export import export
from narrows.infer.loading import load
from narrows.model import gguf
from narrows.model.gguf import GGUF
from narrows.model.writing import Outgoing
from narrows.spec.errors import BadInput, RunFailed

from .conftest import MakeRun

ROOM = 1 << 30
"""Bytes that reading a lie may map beyond what is mapped before it."""
WHOLE_NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 65, 300, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
LIES: st.SearchStrategy[Any] = st.one_of(
    WHOLE_NUMBERS, st.integers(-(2**63), -1), st.booleans(),
    st.sampled_from([0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")]),
    st.sampled_from(["", "none", "gpt2", "llama", "[PAD]" * 50]), st.text("ab é\0", max_size=5),
    st.lists(st.integers(-3, 300), max_size=5), st.lists(st.sampled_from(["a", "b b", ""])),
)  # fmt: skip
TRIED = settings(max_examples=150, deadline=None)


@contextmanager
def little_memory() -> Iterator[None]:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def use(path: Path) -> None:
    """Refused or not, nothing else may come of it."""
    with little_memory():
        try:
            load(path)
        except BadInput as error:
            assert error.hint
        except RunFailed as error:
            # What fits in every way may still be other weights than those that were trained.
            assert "not finite" in error.what


@pytest.fixture
def file(make_run: MakeRun, tmp_path: Path) -> Path:
    path = tmp_path / "true.gguf"
    export(make_run(), path, type="q8_0")
    return path


@pytest.fixture
def folder(make_run: MakeRun, tmp_path: Path) -> Path:
    path = tmp_path / "true"
    export(make_run(), path)
    return path


def test_facts_of_a_gguf_file_that_lie(file: Path) -> None:
    true, lying = gguf.opened(file), file.with_name("lying.gguf")

    @TRIED
    @given(st.sampled_from(sorted(true.facts)), LIES)
    def lie(name: str, value: Any) -> None:
        rewritten(true, {**true.facts, name: value}, lying)
        use(lying)

    @TRIED
    @given(st.sampled_from(sorted(true.facts)))
    def leave_out(name: str) -> None:
        rewritten(true, {key: each for key, each in true.facts.items() if key != name}, lying)
        use(lying)

    lie()
    leave_out()


def rewritten(true: GGUF, facts: Mapping[str, Any], path: Path) -> None:
    def taker(name: str) -> Callable[[], Any]:
        def take() -> Any:
            into = torch.empty(true.shape(name))
            true.read(name, into)
            return into

        return take

    gguf.write(
        path, facts,
        [(Outgoing(name, each.shape, taker(name)), each.block)
         for name, each in true.tensors.items()],
    )  # fmt: skip


def test_tensors_of_a_gguf_file_that_lie(file: Path) -> None:
    content, names = file.read_bytes(), sorted(gguf.opened(file).tensors)
    lying = file.with_name("lying.gguf")

    @TRIED
    @given(st.sampled_from(names), st.integers(0, 4), WHOLE_NUMBERS)
    def lie(name: str, field: int, value: int) -> None:
        known = struct.pack("<Q", len(name)) + name.encode()
        at = content.index(known) + len(known)
        (dimensions,) = struct.unpack_from("<I", content, at)
        places = [(at, "<I"), *((at + 4 + 8 * n, "<Q") for n in range(dimensions))]
        behind = at + 4 + 8 * dimensions
        place, form = [*places, (behind, "<I"), (behind + 4, "<Q")][field % (dimensions + 3)]
        changed = bytearray(content)
        struct.pack_into(form, changed, place, value % (1 << (8 * struct.calcsize(form))))
        lying.write_bytes(changed)
        use(lying)

    lie()


def test_counts_at_the_head_of_a_gguf_file_that_lie(file: Path) -> None:
    content, lying = file.read_bytes(), file.with_name("lying.gguf")

    @TRIED
    @given(st.sampled_from([8, 16, 24]), WHOLE_NUMBERS)
    def lie(place: int, value: int) -> None:
        changed = bytearray(content)
        struct.pack_into("<Q", changed, place, value)
        lying.write_bytes(changed)
        use(lying)

    lie()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_settings_of_a_folder_that_lie(name: str, folder: Path) -> None:
    true = json.loads((folder / name).read_text())

    @TRIED
    @given(st.sampled_from(sorted(true)), st.one_of(LIES, st.none(), st.just({"a": [{}]})))
    def lie(key: str, value: Any) -> None:
        (folder / name).write_text(json.dumps({**true, key: value}))
        use(folder)

    lie()


def test_places_of_safetensors_that_lie(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    true, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = sorted(set(true) - {"__metadata__"})
    numbers = st.lists(st.one_of(WHOLE_NUMBERS, st.integers(-(2**70), 2**70), LIES), max_size=4)
    values = st.one_of(LIES, numbers, st.sampled_from(["F64", "I8", "F8_E4M3"]))

    @TRIED
    @given(st.sampled_from(names), st.sampled_from(["dtype", "shape", "data_offsets"]), values)
    def lie(name: str, key: str, value: Any) -> None:
        header = json.dumps({**true, name: {**true[name], key: value}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + body)
        use(folder)

    @TRIED
    @given(st.integers(0, len(content)), WHOLE_NUMBERS)
    def cut(at: int, claimed: int) -> None:
        path.write_bytes(content[:at])
        use(folder)
        path.write_bytes(struct.pack("<Q", claimed) + content[8:])
        use(folder)

    lie()
    cut()
