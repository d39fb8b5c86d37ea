from __future__ import annotations

from pathlib import Path

import pytest

from narrows.cli.adapters import named, of, refuse_beside
from narrows.cli.main import parser
from narrows.spec.errors import BadInput


def test_names_are_of_folders(tmp_path: Path) -> None:
    options = ["--adapter", f"a={tmp_path}", f"--adapter=b={tmp_path}"]
    chosen = parser().parse_args(["serve", "model", *options])
    assert named(chosen, "model") == {"a": tmp_path, "b": tmp_path}
    for verb in ("generate", "chat"):
        chosen = parser().parse_args([verb, "model", "--adapter", str(tmp_path)])
        assert of(chosen) == {None: tmp_path}
        assert of(parser().parse_args([verb, "model"])) == {}


@pytest.mark.parametrize(
    ("given", "told", "hint"),
    [
        (["pirate"], "--adapter pirate is not NAME=FOLDER", "such as --adapter pirate=pirate-lora"),
        (["=."], "--adapter =. is not NAME=FOLDER", "such as --adapter pirate=pirate-lora"),
        (["a=.", "a=.."], "two adapters are called a", "each needs a name of its own"),
        (["model=."], "an adapter is called model, as is the model", "another name"),
        (["a=nowhere"], "nowhere does not exist", "give a folder as PEFT writes them"),
        ([f"a={__file__}"], f"{__file__} is no folder", "give a folder as PEFT writes them"),
    ],
)
def test_a_mistake_is_told(given: list[str], told: str, hint: str) -> None:
    options = [f"--adapter={each}" for each in given]
    with pytest.raises(BadInput) as error:
        named(parser().parse_args(["serve", "model", *options]), "model")
    assert (error.value.what, error.value.hint) == (told, hint)


def test_a_run_is_told_how_its_adapter_is_written(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("")
    with pytest.raises(BadInput, match="is a run, not an adapter alone") as error:
        of(parser().parse_args(["generate", "model", "--adapter", str(tmp_path)]))
    hint = f"narrows export {tmp_path} --to {tmp_path.name}-adapter --adapter-only"
    assert error.value.hint == hint


def test_a_model_that_writes_nothing_takes_none() -> None:
    refuse_beside(Path("bert"), "is an encoder", {})
    with pytest.raises(BadInput, match="bert is an encoder: no adapters"):
        refuse_beside(Path("bert"), "is an encoder", {"a": Path()})
