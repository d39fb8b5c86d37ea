"""A contest: contestants run in turn on one machine, each turn a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from peers.environment import CACHE, python_of, variables

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Who trains, by which worker, with which of its own settings."""

    name: str
    peer: str
    script: str
    setting: dict[str, object]

    @property
    def label(self) -> str:
        """The name, with the micro-batch where one is set."""
        micro_batch = self.setting.get("micro_batch")
        return f"{self.name}, micro-batch {micro_batch}" if micro_batch else self.name

    def with_micro_batch(self, micro_batch: int) -> Contestant:
        """The same with another accumulation."""
        return replace(self, setting=self.setting | {"micro_batch": micro_batch})


@dataclass
class Score:
    """What a contestant did in all its turns."""

    contestant: Contestant
    step_seconds: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    memory_bytes_peak: float = 0.0
    memory_bytes_steady: float = 0.0
    start_seconds: float = 0.0
    last: dict = field(default_factory=dict)

    def add(self, answer: dict) -> None:
        """Take one turn's answer."""
        self.step_seconds += answer["step_seconds"]
        self.turns.append(statistics.median(answer["step_seconds"]))
        self.memory_bytes_peak = max(self.memory_bytes_peak, answer["memory_bytes_peak"])
        self.memory_bytes_steady = max(self.memory_bytes_steady, answer["memory_bytes_steady"])
        self.start_seconds = max(self.start_seconds, answer["start_seconds"])
        self.last = answer

    @property
    def seconds(self) -> float:
        """Median step over all turns."""
        return statistics.median(self.step_seconds)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How long a turn is: steps to warm up, steps measured, seconds after which two suffice."""

    warmup: int
    measured: int
    seconds_most: float


def take_turn(
    contestant: Contestant, work: dict, tokens: Path, turn: Turn, *, threads: int,
    talk: Callable[[str], None],
) -> dict | None:  # fmt: skip
    """Run one contestant once; None (and a word why) where it failed."""
    scratch = CACHE / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    task = {
        "work": work,
        "setting": contestant.setting,
        "tokens": str(tokens),
        "scratch": str(scratch),
        "warmup": turn.warmup,
        "measured": turn.measured,
        "seconds_most": turn.seconds_most,
    }
    environment = variables(contestant.peer, threads=threads)
    if contestant.peer == "narrows":
        python = Path(sys.executable)
        environment["PYTHONPATH"] = str(SOURCE)
    else:
        python = python_of(contestant.peer, talk=talk)
    command = [str(python), str(HERE / contestant.script), json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        talk(f"{contestant.label} ended with {done.returncode}:\n{done.stderr[-1500:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])
