"""Predicted beside measured on this machine: step time and peak memory of whole training steps.

Each configuration is planned from its own job and the probed machine, then trained for a few steps
in a process of its own. Prints a table, and as the last line the errors as JSON:

    python benchmarks/truth.py [--only NAME ...] [--refresh]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from narrows.hardware.probe import probe
from narrows.plan.plan import make_plan
from narrows.spec.job import Job
from narrows.spec.machine import Machine
from narrows.spec.record import from_builtins, save

WORKER = Path(__file__).with_name("truth_worker.py")


class Configuration(NamedTuple):
    """A model, and what of its layout is fixed; the plan chooses the rest."""

    name: str
    kind: str
    shape: tuple[int, int, int, int]  # layers, width, heads, vocabulary
    context: int
    batch: int
    layout: dict[str, object]


CONFIGURATIONS = (
    Configuration("0.5M chosen", "llama", (2, 96, 3, 2048), 256, 16, {}),
    Configuration("1M characters", "gpt2", (4, 128, 4, 96), 128, 32, {}),
    Configuration("10M chosen", "gpt2", (6, 384, 6, 65), 256, 32, {}),
    Configuration("10M fp32", "gpt2", (6, 384, 6, 65), 256, 8, {"precision": "fp32"}),
    Configuration("10M torch", "gpt2", (6, 384, 6, 65), 256, 16, {"kernels": "torch",
                                                                  "precision": "bf16"}),
    Configuration("10M recompute", "llama", (6, 384, 6, 4096), 512, 16, {"recompute": "full"}),
    *(
        Configuration(f"10M {name}", "llama", (6, 384, 6, 4096), 512, 2, {
            "kernels": "torch", "precision": "bf16", "compile": False, "micro_batch": 2,
            "recompute": how,
        })
        for name, how in (("kept", "none"), ("selective", "selective"), ("again", "full"))
    ),
    Configuration("10M compile", "llama", (6, 384, 6, 4096), 256, 8, {"compile": True,
                                                                      "precision": "bf16"}),
    Configuration("10M compile fp32", "gpt2", (6, 384, 6, 4096), 256, 4, {"compile": True,
                                                                          "precision": "fp32"}),
    *(
        Configuration(f"34M {name}", "llama", (8, 512, 8, 16384), 256, 4, {
            "kernels": "torch", "compile": False, "micro_batch": 2, "recompute": "none",
            "processes": 1, "loss_chunk": 256, "offload": where,
        })
        for name, where in (("kept", "none"), ("on disk", "disk"))
    ),
    Configuration("30M long", "llama", (8, 512, 8, 8192), 2048, 4, {}),
    Configuration("50M torch recompute", "llama", (8, 640, 10, 8192), 512, 8,
                  {"kernels": "torch", "precision": "bf16", "recompute": "full"}),
    Configuration("124M chosen", "gpt2", (12, 768, 12, 50257), 1024, 2, {}),
    Configuration("124M accumulated", "gpt2", (12, 768, 12, 50257), 512, 4, {"micro_batch": 1}),
    Configuration("150M chosen", "llama", (16, 832, 13, 32768), 1024, 2, {}),
)  # fmt: skip


def main() -> None:
    """Run every configuration, or those named, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of configurations")
    parser.add_argument("--refresh", action="store_true", help="probe the machine again first")
    chosen = parser.parse_args()
    machine = probe(talk=lambda text: print(text, file=sys.stderr), refresh=chosen.refresh)
    # What earlier runs taught is left out: the curves alone are judged.
    machine = msgspec.structs.replace(machine, calibration={})
    print(f"{machine.name}, torch {machine.torch}\n")
    print(f"{'':22}{'step s':>18}{'':>8}{'memory MB':>18}")
    print(f"{'':22}{'predicted measured':>18}{'error':>8}{'predicted measured':>19}{'error':>8}")
    errors = []
    for configuration in CONFIGURATIONS:
        if not chosen.only or configuration.name in chosen.only:
            errors.append(_compare(configuration, machine))
    times, memories = [abs(e[0]) for e in errors], [abs(e[1]) for e in errors]
    answer = {
        "configurations": len(errors),
        "time_median": round(median(times), 4), "time_worst": round(max(times), 4),
        "memory_median": round(median(memories), 4), "memory_worst": round(max(memories), 4),
    }  # fmt: skip
    print(f"\n{json.dumps(answer)}")


def _compare(configuration: Configuration, machine: Machine) -> tuple[float, float]:
    plan = make_plan(_job(configuration), machine, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.toml"
        save(plan, path)
        done = subprocess.run(
            [sys.executable, str(WORKER), str(path)], capture_output=True, text=True, check=True
        )
    measured = json.loads(done.stdout.splitlines()[-1])
    predicted = plan.predicted
    time_error = predicted.step_seconds / measured["seconds"] - 1.0
    memory_error = predicted.memory.peak / measured["memory_bytes"] - 1.0
    print(
        f"{configuration.name:22}{predicted.step_seconds:9.3f}{measured['seconds']:9.3f}"
        f"{time_error:+8.1%}{predicted.memory.peak / 1e6:10.0f}"
        f"{measured['memory_bytes'] / 1e6:9.0f}{memory_error:+8.1%}",
        flush=True,
    )
    for kind, seconds in measured["kinds"].items():
        expected = predicted.seconds_by_kind().get(kind, 0.0)  # type: ignore[call-overload]
        if max(seconds, expected) > 0.03 * measured["seconds"]:
            print(f"    {kind:18}{expected:9.4f}{seconds:9.4f}", file=sys.stderr)
    return time_error, memory_error


def _job(configuration: Configuration) -> Job:
    layers, width, heads, vocabulary = configuration.shape
    return from_builtins(
        Job,
        {
            "name": "truth",
            "model": {
                "kind": configuration.kind, "layers": layers, "width": width, "heads": heads,
                "vocabulary": vocabulary, "context": configuration.context,
            },
            "train": {"steps": 1000, "batch_sequences": configuration.batch},
            "layout": configuration.layout,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
