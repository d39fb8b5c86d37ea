from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from narrows.hardware import find
from narrows.kernels.load import available
from narrows.spec import record
from narrows.spec.machine import Machine
from tests.homes import new_home
from tests.infer.conftest import bpe, make_run

__all__ = ["bpe", "make_run"]


@pytest.fixture(scope="session")
def machine() -> Machine:
    """A machine as probed once; only its fingerprint and kernels are made this one's."""
    kept = record.load(Machine, Path(__file__).with_name("machine.toml"))
    return msgspec.structs.replace(kept, fingerprint=find.fingerprint(), kernel_sets=available())


@pytest.fixture(scope="module")
def place(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with a known machine, some text and a job of a few steps."""
    folder = tmp_path_factory.mktemp("place")
    record.save(machine, new_home(folder / "home") / "machine.toml")
    (folder / "text").mkdir()
    for module in (inspect, textwrap, os):
        source = Path(inspect.getfile(module))
        (folder / "text" / f"{source.stem}.txt").write_text(source.read_text())
    (folder / "job.toml").write_text(
        'name = "tiny"\n[data]\ncorpus = "text"\nvocabulary = 300\nworkers = 1\n'
        "[model]\nlayers = 1\nwidth = 32\nheads = 2\ncontext = 32\n"
        "[train]\nsteps = 12\nbatch_sequences = 4\n[layout]\nthreads = 1\ncompile = false\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NARROWS_HOME", str(folder / "home"))
        patch.chdir(folder)
        yield folder
