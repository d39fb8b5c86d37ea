"""Answers go to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from narrows.spec.errors import NarrowsError
    from narrows.spec.record import Record


def answer(text: str) -> None:
    """Print what the user asked for."""
    print(text, flush=True)


def piece(text: str) -> None:
    """Print a part of the answer as it comes."""
    if text:
        print(text, end="", flush=True)


def answer_json(value: Record | dict[str, Any]) -> None:
    """Print it as one line of JSON."""
    import msgspec

    from narrows.spec.record import Record, to_json

    answer(to_json(value) if isinstance(value, Record) else msgspec.json.encode(value).decode())


def talk(text: str) -> None:
    """Say what is going on."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        print(text, file=sys.stderr, flush=True)


def next_step(command: str) -> None:
    """Name the command that usually follows."""
    talk(f"next: {command}")


def error(told: NarrowsError, *, as_json: bool) -> None:
    """Say what went wrong; a program that reads JSON gets it as JSON too."""
    from narrows.spec.errors import Interrupted

    talk(str(told) if isinstance(told, Interrupted) else f"error: {told}")
    if as_json:
        fields = {"error": told.what, "causes": told.causes, "hint": told.hint}
        with contextlib.suppress(OSError):
            answer_json({**fields, "exit_code": told.exit_code})


def accept_any_encoding() -> None:
    """Print what the terminal cannot show as "?" rather than fail on it, and read what is no text
    as arguments are read, for whoever needs text to refuse.
    """
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def flush() -> None:
    """Hand over what is buffered, so that a full disk or a closed pipe is noticed here."""
    if sys.stdout is not None:
        sys.stdout.flush()


def silence() -> None:
    """Drop what is still buffered: nobody reads it, and Python would complain at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
