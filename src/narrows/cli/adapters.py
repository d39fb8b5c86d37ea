"""Adapters beside a model: what generate, chat and serve say of them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from narrows.spec.errors import BadInput


def one(parser: argparse.ArgumentParser) -> None:
    """Declare the one that everything is written with."""
    parser.add_argument("--adapter", metavar="FOLDER",
                        help="one of PEFT's, to stand beside a published model")  # fmt: skip


def several(parser: argparse.ArgumentParser) -> None:
    """Declare any number, each for who asks for it."""
    parser.add_argument("--adapter", metavar="NAME=FOLDER", action="append", default=[],
                        help="one of PEFT's beside a published model, for requests of that "
                        "name; repeatable")  # fmt: skip


def of(chosen: argparse.Namespace) -> dict[str | None, Path]:
    """What `one` declared, as `load_writer` takes it."""
    return {} if chosen.adapter is None else {None: folder_of(chosen.adapter)}


def named(chosen: argparse.Namespace, model: str) -> dict[str | None, Path]:
    """What `several` declared; raises BadInput where a name is missing, or is another's."""
    found = dict[str | None, Path]()
    for given in chosen.adapter:
        name, equals, folder = given.partition("=")
        if not (name and equals and folder):
            raise BadInput(
                f"--adapter {given} is not NAME=FOLDER", hint="such as --adapter pirate=pirate-lora"
            )
        if name in found:
            raise BadInput(f"two adapters are called {name}", hint="each needs a name of its own")
        if name == model:
            raise BadInput(f"an adapter is called {name}, as is the model", hint="another name")
        found[name] = folder_of(folder)
    return found


def refuse_beside(model: Path, what: str, given: object) -> None:
    """Raises BadInput where adapters are given for a model that is `what`."""
    if given:
        raise BadInput(
            f"{model} {what}: no adapters stand beside it",
            hint="merge it into a published model: narrows export MODEL --adapter FOLDER --to OUT",
        )


def folder_of(given: str) -> Path:
    """One of PEFT's; raises BadInput where there is none, or a run, which has one to write."""
    found = Path(given).expanduser()
    if (found / "plan.toml").is_file():
        words = ["narrows", "export", given, "--to", f"{found.name}-adapter", "--adapter-only"]
        raise BadInput(f"{found} is a run, not an adapter alone", hint=shlex.join(words))
    if not found.is_dir():
        what = f"{found} is no folder" if found.exists() else f"{found} does not exist"
        raise BadInput(what, hint="give a folder as PEFT writes them")
    return found
