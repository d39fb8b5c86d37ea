"""A server in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import narrows


class Served(NamedTuple):
    """The process, the port that it listens at, and what it says."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(model: Path, log: Path, *options: str) -> Iterator[Served]:
    """Within it `narrows serve MODEL` runs, and says what it says in `log`; then it is killed."""
    words = ["-m", "narrows.cli.main", "serve", str(model), "--port", "0", *options]
    source = str(Path(narrows.__file__).parents[1])
    with log.open("wb") as said, subprocess.Popen(
        [sys.executable, *words], stderr=said, env={**os.environ, "PYTHONPATH": source}
    ) as process:  # fmt: skip
        while not (found := re.search(r":(\d+) \(ctrl", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield Served(process, int(found[1]), log)
        process.kill()
