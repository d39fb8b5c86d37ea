"""The measuring process: `python -m narrows.hardware.measure WHAT REQUEST RESULT`.

It measures WHAT (everything, compiler, spot or link), tells its progress on stdout and leaves a
record in RESULT. Being a process of its own, it leaves no threads, settings or memory in its
caller.
"""

from __future__ import annotations

import sys
from pathlib import Path

from narrows.hardware.measure import run
from narrows.hardware.measurement import REFUSED, Request
from narrows.spec import record
from narrows.spec.errors import BadInput


def main(what: str, request: str, result: str) -> None:
    """Read the request, measure, write the result."""
    measures = {
        "everything": run.everything, "compiler": run.compiler, "spot": run.spot, "link": run.link
    }  # fmt: skip
    measure = measures[what]
    record.save(measure(record.load(Request, request)), Path(result))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BadInput as error:
        sys.exit(f"{REFUSED}{error.what}{REFUSED}{error.hint or ''}")
