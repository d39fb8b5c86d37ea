from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from narrows.infer.checkpoint import locate, step, weights
from narrows.spec.errors import BadInput

from .conftest import MakeRun


def test_a_checkpoint_is_found_by_name(make_run: MakeRun) -> None:
    run = make_run(steps=(10, 20, 30), best=20)
    names = {name: locate(run, name).name for name in (None, "best", "latest", "step-00000010")}
    assert list(names.values()) == ["step-00000020"] * 2 + ["step-00000030", "step-00000010"]
    assert step(locate(run, "latest")) == 30


@pytest.mark.parametrize(
    ("name", "hint"),
    [("latst", "did you mean latest?"), ("step-00000011", "did you mean step-00000010?"),
     ("12", "there are best, latest, step-00000010"), ("../..", "there are best, latest")],
)  # fmt: skip
def test_an_unknown_name_is_refused(make_run: MakeRun, name: str, hint: str) -> None:
    with pytest.raises(BadInput, match="has no checkpoint") as caught:
        locate(make_run(), name)
    assert hint in str(caught.value.hint)


def test_a_best_that_is_not_yet_is_not_replaced_in_silence(make_run: MakeRun) -> None:
    run = make_run(best=None)
    with pytest.raises(BadInput, match="no best checkpoint yet") as caught:
        locate(run, "best")
    assert "--checkpoint step-00000010" in str(caught.value.hint)


@pytest.mark.parametrize("written", ["step-00000099", "", "../../elsewhere"])
def test_a_name_that_leads_nowhere_is_told(make_run: MakeRun, written: str) -> None:
    run = make_run()
    (run / "checkpoints/latest").write_text(written)
    with pytest.raises(BadInput, match="is not there"):
        locate(run, "latest")


def test_a_checkpoint_half_written_is_none(make_run: MakeRun) -> None:
    run = make_run(steps=())
    (run / "checkpoints/step-00000010.partial").mkdir()
    with pytest.raises(BadInput, match="has no checkpoint yet"):
        locate(run)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def junk_that_matches(path: Path) -> None:
    import hashlib

    path.write_bytes(b"junk")
    state = json.loads((path.parent / "state.json").read_text())
    state["sha256"]["weights.safetensors"] = hashlib.sha256(b"junk").hexdigest()
    (path.parent / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (flip, "is damaged"), (cut, "is damaged"), (Path.unlink, "does not exist"),
        (junk_that_matches, "cannot be read"),
        (lambda path: (path.parent / "state.json").write_text("[]"), "does not describe"),
        (lambda path: (path.parent / "state.json").write_text("{"), "is not valid JSON"),
        (lambda path: (path.parent / "state.json").write_text("{}"), "is damaged"),
        (lambda path: (path.parent / "state.json").write_text('{"sha256": 3}'), "not describe"),
        (lambda path: (path.parent / "state.json").unlink(), "does not exist"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_never_used(
    make_run: MakeRun, harm: Callable[[Path], object], what: str
) -> None:
    checkpoint = locate(make_run(steps=(10, 20), best=20))
    assert weights(checkpoint)
    harm(checkpoint / "weights.safetensors")
    with pytest.raises(BadInput, match=what):
        weights(checkpoint)


def test_the_way_out_of_damage_is_another_checkpoint(make_run: MakeRun) -> None:
    run = make_run(steps=(10, 20), best=20)
    flip(locate(run) / "weights.safetensors")
    with pytest.raises(BadInput) as caught:
        weights(locate(run))
    assert caught.value.hint == "use another: --checkpoint step-00000010"
    assert weights(locate(run, "step-00000010"))
