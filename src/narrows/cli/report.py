"""narrows report: predicted beside measured, on one page."""

from __future__ import annotations

import argparse

from narrows.cli import folder, speak

SUMMARY = "Show a run: what was predicted beside what was measured, as text and as one page."
EXAMPLES = """\
narrows report runs/shakespeare            text here, and runs/shakespeare/report.html
narrows report runs/shakespeare --json     the numbers alone"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="RUN", help="a run folder, such as runs/shakespeare")


def run(chosen: argparse.Namespace) -> int:
    """Write the page and show the run."""
    from narrows.report.facts import facts
    from narrows.report.page import write
    from narrows.report.text import text

    run_folder = folder.existing(chosen.folder)
    page = write(run_folder)
    if chosen.json:
        speak.answer_json({**facts(run_folder), "page": str(page)})
    else:
        speak.answer(text(run_folder))
    speak.talk(f"wrote {page}")
    speak.next_step(folder.after(run_folder))
    return 0
