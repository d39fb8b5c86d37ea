from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.cli import folder
from narrows.cli.main import main
from narrows.spec.errors import BadInput
from tests.infer.conftest import MakeRun, spec


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(name: str, *, age: int) -> Path:
    path = Path("runs") / name
    path.mkdir(parents=True)
    (path / "plan.toml").write_text("")
    (path / "metrics.jsonl").write_text("")
    os.utime(path / "metrics.jsonl", (1_000_000 - age, 1_000_000 - age))
    return path


def test_a_new_run_never_writes_into_an_old_one() -> None:
    assert folder.fresh(None, "plays") == Path("runs/plays")
    run("plays", age=0)
    assert folder.fresh(None, "plays") == Path("runs/plays-2")
    run("plays-2", age=0)
    assert folder.fresh(None, "plays") == Path("runs/plays-3")
    with pytest.raises(BadInput, match="holds a run already") as caught:
        folder.fresh("runs/plays", "plays")
    assert caught.value.hint and "--resume" in caught.value.hint


def test_resuming_by_name_means_the_latest() -> None:
    run("plays", age=5)
    latest = run("plays-2", age=1)
    run("plays-2-extra", age=0)
    assert folder.newest("plays") == latest
    other = run("other", age=-1)
    assert folder.newest(None) == other and folder.newest("plays") == latest
    with pytest.raises(BadInput, match="there is no run of poems"):
        folder.newest("poems")


def test_a_folder_that_is_no_run_is_refused_with_the_nearest_run() -> None:
    plays = run("plays", age=0)
    assert folder.existing("runs/plays") == plays
    with pytest.raises(BadInput, match="runs/palys does not exist") as caught:
        folder.existing("runs/palys")
    assert caught.value.hint == "did you mean runs/plays?"
    with pytest.raises(BadInput, match="is not a run folder"):
        folder.existing("runs")


@pytest.mark.parametrize(("changes", "command"), [
    ({}, 'narrows generate runs/x --prompt "..."'),
    ({"causal": False}, "narrows serve runs/x"),
    ({"causal": False, "classes": 2}, 'narrows generate runs/x --prompt "..."'),
])  # fmt: skip
def test_what_follows_a_run_is_what_its_model_can_do(
    changes: dict[str, Any], command: str, make_run: MakeRun
) -> None:
    found = make_run(shape=msgspec.structs.replace(spec(), **changes))
    Path("runs").mkdir()
    found.rename("runs/x")
    assert folder.after(Path("runs/x")) == command


@pytest.mark.parametrize("option", ["--regex=a", "--top-k=3", "--stop=x"])
def test_what_shapes_a_text_is_refused_by_a_model_that_tells_classes(
    option: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    found = make_run(shape=msgspec.structs.replace(spec(), causal=False, classes=2))
    assert main(["generate", str(found), "--prompt", "x", option]) == 2
    told = capsys.readouterr().err
    assert f"{option.partition('=')[0]} is of writing" in told and "leave it out" in told


def test_a_run_without_a_checkpoint_is_gone_on_with(make_run: MakeRun) -> None:
    found = make_run(steps=())
    assert folder.after(found) == f"narrows train {found} --resume"


def test_a_preset_is_told_its_name_on_the_hub() -> None:
    with pytest.raises(BadInput, match="whose weights are not here") as caught:
        folder.of_model("smollm2-135m")
    assert caught.value.hint and caught.value.hint.endswith(": HuggingFaceTB/SmolLM2-135M")
    with pytest.raises(BadInput, match="nothing-such does not exist"):
        folder.of_model("nothing-such")


def test_there_may_be_no_run_to_resume() -> None:
    with pytest.raises(BadInput, match="there is no run to resume") as caught:
        folder.newest(None)
    assert caught.value.hint and caught.value.hint.startswith("train one: narrows train")
