"""An argument parser whose help opens with examples and whose errors name what was meant."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from narrows.spec.errors import BadInput, nearest

_COLUMNS = 80
_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<known>.*)\)")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse makes one for each argument that is declared; left to itself it would load shutil,
    and all compressions with it, to learn the terminal's width.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """As shutil.get_terminal_size has it."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    if sys.__stdout__ is None:
        return _COLUMNS
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or _COLUMNS
    except (ValueError, OSError):
        return _COLUMNS


class Parser(argparse.ArgumentParser):
    """argparse with `examples` above the usage; a mistake raises BadInput with a hint."""

    def __init__(self, *, examples: str, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self.examples = examples

    def format_help(self) -> str:
        """Examples, then what argparse writes."""
        lines = "\n".join(f"  {line}" for line in self.examples.splitlines())
        return f"examples:\n{lines}\n\n{super().format_help()}"

    def error(self, message: str) -> NoReturn:
        """Raise BadInput, with the nearest choice where one was refused."""
        hint = f"{self.prog} --help"
        if match := _CHOICE.search(message):
            known = re.findall(r"[\w-]+", match["known"])
            guess = nearest(match["given"], known)
            message = f'"{match["given"]}" is none of: {", ".join(known)}'
            hint = f"did you mean {guess}?" if guess else hint
        raise BadInput(message, hint=hint)

    def verbs(self) -> list[Parser]:
        """The parsers of the verbs below this one."""
        below = [each.choices for each in self._actions if isinstance(each.choices, dict)]
        return [parser for choices in below for parser in choices.values()]

    def refuse(self, argument: str) -> NoReturn:
        """Raise BadInput for an argument that this verb does not know."""
        if not argument.startswith("-"):
            raise BadInput(f"{self.prog} has no use for: {argument}", hint=f"{self.prog} --help")
        guess = nearest(argument.partition("=")[0], self._option_string_actions)
        hint = f"did you mean {guess}?" if guess else f"{self.prog} --help"
        raise BadInput(f"{self.prog} does not know {argument}", hint=hint)


def given(chosen: argparse.Namespace, names: Sequence[str]) -> str | None:
    """Of the arguments of these names the first that was given, as it is typed."""
    for name in names:
        value = getattr(chosen, name)
        if not (value is None or value is False or value == []):
            return "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
    return None
