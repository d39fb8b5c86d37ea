"""What a chat template is told beside messages: what chat, serve and evaluate say of it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.data.template import Template

_HINT = "--template enable_thinking=false"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare it."""
    parser.add_argument("--template", action="append", default=[], metavar="NAME=VALUE",
                        help="tell the model's chat template, as enable_thinking=false; "
                        "repeatable")  # fmt: skip


def of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Each by its name, a value that is JSON as that, else as text; raises BadInput for what is
    neither.
    """
    found: dict[str, Any] = {}
    for given in chosen.template:
        name, equals, value = given.partition("=")
        if not equals or not name.strip().isidentifier():
            raise BadInput(f"--template {given} is no NAME=VALUE", hint=_HINT)
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            # As Python and shells write them.
            found[name.strip()] = {"True": True, "False": False}.get(value, value)
    return found


def refuse_unread(template: Template | None, options: dict[str, Any]) -> None:
    """Raises BadInput where the model's template would not read one."""
    if options and template is None:
        raise BadInput(
            "the model has no chat template to be told anything", hint="leave --template out"
        )
    if template is not None:
        template.refuse_unknown(options)
