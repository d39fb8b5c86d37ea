"""A server in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

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


@contextmanager
def browsing(url: str) -> Iterator[Any]:
    """Playwright's page of what is served there, in Chromium; its script is to raise nothing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = os.environ.get("NARROWS_CHROMIUM") or shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium was found: the page was not looked at in a browser")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page, errors = opened.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        assert errors == []
        opened.close()
