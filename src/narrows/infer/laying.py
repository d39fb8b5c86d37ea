"""A model laid out by a process of its own: it alone needs torch.

lay_out(path, precision, folder) runs `python -m narrows.infer.laying`, which runs `lay`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from narrows.infer.generate import ServingPrecision
from narrows.infer.laid import About, Shelf
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.record import Record, loads, to_json

_ANY = "any"
"""Of a precision that was not asked for."""
_LINES_KEPT = 8


class _Told(Record):
    """Whether the model was laid out; otherwise torch computes it, or it is `wrong`."""

    laid: bool
    wrong: str | None = None
    causes: tuple[str, ...] = ()
    hint: str | None = None


def lay_out(path: Path, precision: ServingPrecision | None, folder: Path) -> bool:
    """Whether the packed decoder computes it: then it is in the folder. Raises BadInput as the
    model's reader does, RunFailed where the process ends otherwise.
    """
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(path), precision or _ANY]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RunFailed(
            f"laying {path} out failed (exit {done.returncode})",
            causes=done.stderr.strip().splitlines()[-_LINES_KEPT:],
        )
    told = loads(_Told, done.stdout, source="what was laid out.json")
    if told.wrong is not None:
        raise BadInput(told.wrong, causes=told.causes, hint=told.hint)
    return told.laid


def main(arguments: list[str]) -> None:
    """Do it, and say how it went."""
    path, precision, folder = arguments
    asked: Any = None if precision == _ANY else precision
    try:
        told = _Told(laid=lay(Path(path), asked, Path(folder)))
    except BadInput as error:
        told = _Told(laid=False, wrong=error.what, causes=error.causes, hint=error.hint)
    sys.stdout.write(to_json(told))


def lay(path: Path, precision: ServingPrecision | None, folder: Path) -> bool:
    """The same in this process."""
    from narrows.data import published
    from narrows.infer.packing import bits_for, packed
    from narrows.model.opening import opened

    original = opened(path)
    bits = bits_for(original, precision)
    if bits is None or not original.spec.writes:
        return False
    said, shelf = list[str](), Shelf(folder)
    model = packed(original, bits=bits, talk=said.append, keep=shelf.keep)
    facts = original.facts
    words = None if facts is None else published.words(original.path, facts)
    about = About(source=str(path), kind=original.kind, model=original.spec, said=tuple(said))
    shelf.close(model, about, words)
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
