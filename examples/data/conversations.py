"""Conversations about narrows, of what its verbs say of themselves.

    python examples/data/conversations.py rows

One way to ask in ten is held back; what is to be answered there is learned from the others.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from packages import write

from narrows.cli.main import VERBS

ASKED = (
    "What does narrows {verb} do?",
    "What is the verb {verb} for?",
    "How do I use narrows {verb}?",
    "When would I need narrows {verb}?",
    "Show me narrows {verb}.",
    "Explain the command {verb} of narrows.",
    "I found narrows {verb} in a script. What is it?",
)


def main(folder: Path) -> None:
    """Write a conversation for each verb and each way to ask for it."""
    rows = []
    for verb in VERBS:
        module = import_module(f"narrows.cli.{verb}")
        example = module.EXAMPLES.splitlines()[0].partition("  ")[0]
        answer = f"{module.SUMMARY} For example: {example}"
        for asked in ASKED:
            messages = [
                {"role": "user", "content": asked.format(verb=verb)},
                {"role": "assistant", "content": answer},
            ]
            rows.append((messages[0]["content"], {"messages": messages}))
    write(folder / "conversations", rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
