from __future__ import annotations

import importlib
import os
import pkgutil
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import narrows.spec
from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.job import Job
from narrows.spec.ledger import MemoryPeak
from narrows.spec.machine import Fact
from narrows.spec.model import ModelSpec, gpt2, llama
from narrows.spec.record import Record
from narrows.spec.units import Quantity, Seconds

for module in pkgutil.iter_modules(narrows.spec.__path__):
    importlib.import_module(f"narrows.spec.{module.name}")

KINDS = sorted(
    (kind for kind in Record.__subclasses__() if kind.__module__.startswith("narrows.spec")),
    key=lambda kind: kind.__name__,
)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8)
ANY = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def valid(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type hint, within the ranges that the records accept."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([valid(each) for each in inner])
    if origin is tuple and inner[-1] is not ...:
        return st.tuples(*map(valid, inner))
    if origin is tuple:
        return st.lists(valid(inner[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, valid(inner[1]), max_size=2)
    if origin is Fact:
        known = st.sampled_from(typing.get_args(typing.get_type_hints(Fact)["basis"]))
        return st.builds(Fact, value=valid(inner[0]), basis=known, source=TEXT)
    return valid_leaf(hint)


def valid_leaf(hint: Any) -> st.SearchStrategy[Any]:
    if hint is type(None):
        return st.none()
    if hint is ModelSpec:
        shape = {"layers": 2, "width": 64, "heads": 4, "vocabulary": 256, "context": 128}
        return st.sampled_from([gpt2(**shape), llama(**shape, kv_heads=2)])
    if issubclass(hint, Record):
        hints = typing.get_type_hints(hint)
        fields = {name: valid(hints[name]) for name in hint.__struct_fields__}
        if hint is Job:
            fields["name"] = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,9}\Z")
        if hint.__name__ == "DataSpec":
            fields["corpus"] = st.just("shakespeare")
        if hint.__name__ in ("Spread", "Layout"):
            fields |= {"schedule": st.just("zero_bubble"), "interleave": st.just(2)}
        if hint.__name__ == "LayoutIntent":
            fields["processes"] = st.none()
        if hint.__name__ == "ModelIntent":
            fields["start"] = st.none()
        if hint.__name__ == "LowRank":
            fields["targets"] = st.none() | st.just(("query", "down"))
        if "frozen" in fields:
            fields["frozen"] = st.just(("embeddings", "layers.0-1"))
        if hint.__name__ == "Classify":
            fields["labels"] = st.lists(TEXT, max_size=2, unique=True).map(tuple)
        if hint.__name__ == "PowerSGD":
            fields["start_step"] = st.integers(2, 10**6)
        return st.builds(hint, **fields)
    if issubclass(hint, Quantity):
        return st.floats(min_value=1.0, max_value=1e18).map(hint)
    simple = {
        bool: st.booleans(),
        int: st.integers(1, 10**6),
        float: st.floats(min_value=1e-6, max_value=0.999),
        str: TEXT,
    }
    return simple[hint]


@pytest.mark.parametrize("suffix", [".toml", ".json"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@ANY
@given(data=st.data())
def test_every_record_reads_back_equal(
    kind: type[Record], suffix: str, data: st.DataObject
) -> None:
    hint = Fact[Seconds] if kind is Fact else kind
    value = data.draw(valid(hint))
    text = record.to_toml(value) if suffix == ".toml" else record.to_json(value)
    read = record.loads(hint, text, source=f"input{suffix}")
    assert read == value
    assert record.digest(read) == record.digest(value)


def test_records_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        MemoryPeak(peak=1.0).peak = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        MemoryPeak(1.0)  # type: ignore[call-arg, misc]


def test_digest_differs_where_the_content_does() -> None:
    job = Job(name="x")
    assert record.digest(job) == record.digest(Job(name="x"))
    assert record.digest(job) != record.digest(msgspec.structs.replace(job, seed=1))


def test_absent_values_are_left_out() -> None:
    assert "steps" not in record.to_toml(Job(name="x"))
    assert "null" not in record.to_json(Job(name="x"))


@pytest.mark.parametrize(
    ("assignment", "changed"),
    [
        ("train.steps=100", {"train": {"steps": 100}}),
        ("train.learning_rate = 3e-4", {"train": {"learning_rate": 3e-4}}),
        ("layout.compile=true", {"layout": {"compile": True}}),
        ("budget.time=5 min", {"budget": {"time": "5 min"}}),
        ('data.corpus="hf:a/b"', {"data": {"corpus": "hf:a/b", "vocabulary": 256}}),
        ("data.corpus=a=b.txt", {"data": {"corpus": "a=b.txt", "vocabulary": 256}}),
        ('model.positions={type="rotary"}', {"model": {"positions": {"type": "rotary"}}}),
        ("seed=1\nname=2", {"seed": "1\nname=2"}),
        ("name=" + "[" * 9_000, {"name": "[" * 9_000}),
    ],
)
def test_an_override_changes_one_value(assignment: str, changed: dict[str, Any]) -> None:
    data = {"name": "x", "data": {"corpus": "python", "vocabulary": 256}}
    assert record.with_override(data, assignment) == {**data, **changed}
    assert data == {"name": "x", "data": {"corpus": "python", "vocabulary": 256}}


@pytest.mark.parametrize("assignment", ["train.steps", "=3", "train..steps=3", "name.x=3", ""])
def test_refuses_an_override_without_a_place(assignment: str) -> None:
    with pytest.raises(BadInput, match="--set"):
        record.with_override({"name": "x"}, assignment)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"name = ", "is not valid TOML"),
        (b"steps = " + b"1" * 5000, "is not valid TOML"),
        (b"steps = " + b"[" * 100_000, "is not valid TOML"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"", "name is missing"),
        (b'\xef\xbb\xbfname = "x"\nsteps = 1', "unknown key steps"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=what) as caught:
        record.load(Job, path)
    assert str(path) in caught.value.what


def test_json_that_nests_without_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(BadInput, match="config.json is not valid JSON"):
        record.read(path)


def test_a_missing_file_has_a_likely_neighbour(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('name = "x"')
    with pytest.raises(BadInput) as caught:
        record.load(Job, tmp_path / "jobs.toml")
    assert caught.value.hint == f"did you mean {tmp_path / 'job.toml'}?"
    with pytest.raises(BadInput, match="is a directory"):
        record.load(Job, tmp_path)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "job.toml"
    record.save(Job(name="old"), path)
    with pytest.raises(TypeError):
        record.write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert record.load(Job, path).name == "old"
    assert [each.name for each in path.parent.iterdir()] == ["job.toml"]


def test_writing_follows_a_link_and_refuses_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "real.toml").write_text("")
    (tmp_path / "link.toml").symlink_to("real.toml")
    record.save(Job(name="x"), tmp_path / "link.toml")
    assert (tmp_path / "link.toml").is_symlink()
    assert record.load(Job, tmp_path / "real.toml").name == "x"
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(BadInput, match="is not a file"):
        record.save(Job(name="x"), tmp_path / "pipe.toml")
