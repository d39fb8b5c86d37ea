"""Conversations about narrows, of what its verbs say of themselves.

python examples/data/conversations.py rows
"""

from __future__ import annotations

import sys
from pathlib import Path

from packages import write

from narrows.cli.main import VERBS

SYSTEM = "You help with narrows, and answer in a sentence and a command."
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
    for module in VERBS:
        verb = module.__name__.rpartition(".")[2]
        example = module.EXAMPLES.splitlines()[0].partition("  ")[0]
        answer = f"{module.SUMMARY} For example: {example}"
        for asked in ASKED:
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": asked.format(verb=verb)},
                {"role": "assistant", "content": answer},
            ]
            rows.append((messages[1]["content"], {"messages": messages}))
    write(folder / "conversations", rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
