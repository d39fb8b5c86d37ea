"""A model, or an adapter beside it, laid out by a process of its own: it alone needs torch.

lay_out(wanted, folder) runs `python -m narrows.infer.laying`, which runs `lay`
lay_beside(adapter, model, to) does the same with `beside`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from narrows.infer.generate import ServingPrecision
from narrows.infer.laid import About, Shelf
from narrows.infer.laid_beside import keep
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.record import Record, loads, to_json

_ANY = "any"
"""Of what was not asked for."""
_LINES_KEPT = 8


class Wanted(NamedTuple):
    """A model's file or folder, what it is to be computed in, and which checkpoint of a run."""

    path: Path
    precision: ServingPrecision | None
    checkpoint: str | None = None


class _Told(Record):
    """What is `wrong` with the model, where anything is."""

    wrong: str | None = None
    causes: tuple[str, ...] = ()
    hint: str | None = None


def lay_out(wanted: Wanted, folder: Path) -> None:
    """Fill the folder, which stays empty where torch computes the model. Raises BadInput as the
    model's reader does, RunFailed where the process ends otherwise.
    """
    path, precision, checkpoint = wanted
    _run("model", path, precision or _ANY, checkpoint or _ANY, folder)


def lay_beside(adapter: Path, model: Path, to: Path) -> None:
    """Write the adapter in a folder of PEFT's, beside a published model, as `infer.laid_beside` has
    it. Raises as `lay_out` does.
    """
    _run("adapter", adapter, model, to)


def _run(what: str, path: Path, *others: str | Path) -> None:
    asked = [what, str(path), *map(str, others)]
    command = [sys.executable, "-W", "ignore", "-m", __name__, *asked]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RunFailed(
            f"laying {path} out failed (exit {done.returncode})",
            causes=done.stderr.strip().splitlines()[-_LINES_KEPT:],
        )
    told = loads(_Told, done.stdout, source="what was laid out.json")
    if told.wrong is not None:
        raise BadInput(told.wrong, causes=told.causes, hint=told.hint)


def main(arguments: list[str]) -> None:
    """Do it, and say how it went."""
    told = _Told()
    try:
        _lay(*arguments)
    except BadInput as error:
        told = _Told(wrong=error.what, causes=error.causes, hint=error.hint)
    sys.stdout.write(to_json(told))


def _lay(what: str, path: str, *others: str) -> None:
    if what == "adapter":
        model, to = others
        return beside(Path(path), Path(model), Path(to))
    precision, checkpoint, folder = others
    asked: Any = None if precision == _ANY else precision
    wanted = Wanted(Path(path), asked, None if checkpoint == _ANY else checkpoint)
    lay(wanted, Path(folder))


def beside(adapter: Path, model: Path, to: Path) -> None:
    """What `lay_beside` does, in this process."""
    from narrows.infer.beside import lows, read
    from narrows.model.opening import opened

    keep(lows(read(opened(model), {None: adapter})[None]), to)


def lay(wanted: Wanted, folder: Path) -> None:
    """The same in this process."""
    from narrows.infer.packing import chosen, packed

    what = chosen(wanted.path, wanted.precision, wanted.checkpoint)
    if what is None:
        return
    said, shelf = list[str](), Shelf(folder)
    model = packed(what, talk=said.append, keep=shelf.keep)
    about = About(
        source=str(wanted.path), called=what.called, model=what.given.spec, said=tuple(said)
    )  # fmt: skip
    # A folder's words are read there.
    shelf.close(model, about, what.given.words if wanted.path.is_file() else None)


if __name__ == "__main__":
    main(sys.argv[1:])
