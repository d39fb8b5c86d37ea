"""narrows doctor: what is slow or wrong here, and what to do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from narrows.cli import speak

if TYPE_CHECKING:
    from narrows.hardware.finding import Finding

SUMMARY = "Say what is slow or wrong on this machine, and what to do about it."
EXAMPLES = """\
narrows doctor                     one line for each thing looked at
narrows doctor --json              the same for a program; exit code 1 if something is bad"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: none of its own."""


def run(chosen: argparse.Namespace) -> int:
    """Diagnose and show; 1 where something is bad."""
    from narrows.hardware.doctor import diagnose
    from narrows.hardware.probe import probe

    findings = (*diagnose(probe(talk=speak.talk)), _layouts())
    bad = any(finding.level == "bad" for finding in findings)
    if chosen.json:
        from narrows.spec.record import to_builtins

        speak.answer_json({"findings": [to_builtins(finding) for finding in findings]})
    else:
        for finding in findings:
            speak.answer(f"{finding.level:<5}{finding.what}")
            if finding.level != "ok":
                speak.answer(f"     why: {finding.why}\n     fix: {finding.fix}")
    speak.next_step("narrows plan --budget 5min --corpus shakespeare")
    return 1 if bad else 0


def _layouts() -> Finding:
    """Whether a loss depends on padding, packing or accumulation."""
    from narrows.hardware.finding import Finding
    from narrows.train.selftest import TOLERANCE, differences

    worst = max(differences(), key=lambda each: each.relative)
    if worst.relative <= TOLERANCE:
        return Finding(
            level="ok",
            what=f"padding, packing and accumulation change no loss or gradient by more than "
            f"{worst.relative:.0e}",
        )
    return Finding(
        level="bad",
        what=f"examples {worst.name} have another loss or gradient: {worst.relative:.1e}",
        why="a training would learn something else by how its batch is laid out",
        fix="pip install --force-reinstall narrows; if it stays, report it with this line",
    )
