"""Predicted beside measured, for every objective and every way to train a part of a model.

Each is a job that `narrows train` runs for some steps from the plan's own choice, in a process of
its own. What earlier runs taught the machine is left out. Prints a table, the last line is JSON:

    python benchmarks/objectives.py [--only NAME ...] [--steps 16] [--refresh]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
from peers.commit import commit

from narrows.hardware.probe import probe
from narrows.spec.home import narrows_home
from narrows.spec.ledger import Ledger
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.spec.record import load, save

LAYERS, WORDS, ROWS = 6, 3000, 4000
MODEL = {"kind": "gpt2", "layers": LAYERS, "width": 384, "heads": 6, "context": 256}
BLOCKS = f"layers.0-{LAYERS - 1}"


class Case(NamedTuple):
    """Which rows are read, what is taught, and what of the model learns; `begun` from the model
    that the first case leaves.
    """

    name: str
    data: str
    train: dict[str, Any]
    begun: bool = False


def adapted(name: str, **adapter: Any) -> Case:
    """A case of low ranks."""
    return Case(name, "text", {"adapter": {"type": "lora", **adapter}}, begun=True)


TEACHER = "next token"
CASES = (
    Case(TEACHER, "text", {}),
    Case("masked", "text", {"objective": {"type": "masked"}}),
    Case("distil", "text", {"objective": {"type": "distil"}}, begun=True),
    Case("chat", "chat", {"objective": {"type": "chat"}}, begun=True),
    Case("classify", "classify", {"objective": {"type": "classify"}}, begun=True),
    Case("regress", "regress", {"objective": {"type": "regress"}}, begun=True),
    Case("prefer", "prefer", {"objective": {"type": "prefer"}}, begun=True),
    adapted("lora"),
    adapted("rslora", rule="rslora"),
    adapted("dora", rule="dora"),
    adapted("qlora int8", base="int8"),
    adapted("qlora nf4", base="nf4"),
    Case("biases", "text", {"adapter": {"type": "biases"}}, begun=True),
    Case("last two layers", "text", {"frozen": ["embeddings", f"layers.0-{LAYERS - 3}"]},
         begun=True),
    Case("head", "classify", {"objective": {"type": "classify"},
                              "frozen": ["embeddings", "norms", BLOCKS]}, begun=True),
)  # fmt: skip


def main() -> None:
    """Run every case, or those named, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of cases")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--refresh", action="store_true", help="probe the machine again first")
    asked = parser.parse_args()
    machine = probe(talk=lambda text: print(text, file=sys.stderr), refresh=asked.refresh)
    machine = msgspec.structs.replace(machine, calibration={})
    print(f"{machine.name}, torch {machine.torch}\n")
    print(f"{'':16}{'step ms':>18}{'':>8}{'memory MB':>18}")
    print(f"{'':16}{'predicted measured':>18}{'error':>8}{'predicted measured':>19}{'error':>8}")
    errors = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder)
        (folder / "home").mkdir()
        (folder / "home" / "native").symlink_to(narrows_home() / "native")
        for case in CASES:
            if not asked.only or case.name in asked.only or case.name == TEACHER:
                errors[case.name] = compared(case, machine, folder, asked.steps)
    times, memories = ([abs(each[kind]) for each in errors.values()] for kind in (0, 1))
    answer = {
        "cases": len(errors), "commit": commit(),
        "time_median": round(median(times), 4), "time_worst": round(max(times), 4),
        "memory_median": round(median(memories), 4), "memory_worst": round(max(memories), 4),
    }  # fmt: skip
    print(f"\n{json.dumps(answer)}")


def compared(case: Case, machine: Machine, folder: Path, steps: int) -> tuple[float, float]:
    """Train it, print what was predicted and measured, and say by how much they differ."""
    run, teacher = folder / case.name.replace(" ", "-"), folder / TEACHER.replace(" ", "-")
    train = {"steps": steps, "batch_sequences": 8, **case.train}
    if case.name == "distil":
        train["objective"] = {"type": "distil", "teacher": str(teacher)}
    data = {"corpus": str(folder / f"{case.data}.{'txt' if case.data == 'text' else 'jsonl'}")}
    data |= {} if case.begun else {"tokenizer": "bpe", "vocabulary": 2048}
    model = {"start": str(teacher), "context": 256} if case.begun else MODEL
    job = folder / "job.json"
    job.write_text(json.dumps({
        "name": run.name, "model": model, "data": data, "train": train,
    }))  # fmt: skip
    save(machine, folder / "home" / "machine.toml")
    done = subprocess.run(
        [sys.executable, "-m", "narrows", "train", str(job), "--run", str(run)],
        capture_output=True, text=True, env={**os.environ, "NARROWS_HOME": str(folder / "home")},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{case.name}: {done.stderr}")
    predicted, measured = load(Plan, run / "plan.toml").predicted, load(Ledger, run / "ledger.json")
    time = predicted.step_seconds / measured.step_seconds - 1.0
    memory = predicted.memory.peak / measured.memory.peak - 1.0
    print(
        f"{case.name:16}{predicted.step_seconds * 1e3:9.0f}{measured.step_seconds * 1e3:9.0f}"
        f"{time:+8.1%}{predicted.memory.peak / 1e6:10.0f}{measured.memory.peak / 1e6:9.0f}"
        f"{memory:+8.1%}",
        flush=True,
    )
    return time, memory


def write_rows(folder: Path) -> None:
    """A text of words that nobody says, and rows of them for each objective."""
    drawn = random.Random(7)
    words = [
        "".join(drawn.choices("aeioubdfgklmnprst", k=drawn.randint(2, 8))) for _ in range(WORDS)
    ]

    def said(least: int, most: int) -> str:
        return " ".join(drawn.choices(words, k=drawn.randint(least, most)))

    rows: dict[str, Callable[[int], dict[str, Any]]] = {
        "chat": lambda n: {"prompt": said(5, 20), "answer": said(5, 30)},
        "classify": lambda n: {"text": said(10, 40), "label": n % 3},
        "regress": lambda n: {"text": said(10, 40), "value": float(n % 5)},
        "prefer": lambda n: {"prompt": said(5, 20), "chosen": said(5, 20), "rejected": said(5, 20)},
    }
    (folder / "text.txt").write_text("\n".join(said(8, 20) for _ in range(4 * ROWS)))
    for name, row in rows.items():
        lines = (json.dumps(row(number)) for number in range(ROWS))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
