"""Predicted beside measured on this machine: first token, time a token and memory of answering.

Each configuration answers with random weights in a process of its own, by the model's own caches,
and is predicted from the probed machine. `other_load` is how many cores other work kept busy
meanwhile. Prints a table, and as the last line the errors as JSON:

    python benchmarks/generated.py [--only NAME ...] [--refresh]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from narrows.hardware.probe import probe
from narrows.plan.answer import Question, predict_answer
from narrows.plan.layouts import TrainingPrecision
from narrows.spec.machine import Machine
from narrows.spec.model import ModelSpec, gpt2, llama
from narrows.spec.record import save

WORKER = Path(__file__).with_name("generated_worker.py")
TOKENS = 24
CONTEXT = 1024
MODELS: dict[str, ModelSpec] = {
    "10M": gpt2(layers=6, width=384, heads=6, vocabulary=65, context=CONTEXT),
    "124M": gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=CONTEXT),
    "135M": llama(
        layers=30, width=576, heads=9, kv_heads=3, feed_forward_width=1536, vocabulary=49152,
        context=CONTEXT,
    ),
}  # fmt: skip
"""The work W1, GPT-2, and SmolLM2-135M by their shapes."""


class Configuration(NamedTuple):
    """`sequences` prompts of `prompt` tokens, answered together."""

    model: str
    precision: TrainingPrecision
    sequences: int
    prompt: int

    @property
    def name(self) -> str:
        """How the table and --only call it."""
        return f"{self.model} {self.precision} {self.sequences}x{self.prompt}"


CONFIGURATIONS = (
    Configuration("10M", "bf16", 1, 128), Configuration("10M", "fp32", 1, 512),
    Configuration("10M", "bf16", 8, 128), Configuration("10M", "fp32", 4, 32),
    Configuration("124M", "bf16", 1, 32), Configuration("124M", "bf16", 1, 1000),
    Configuration("124M", "fp32", 1, 128), Configuration("124M", "bf16", 4, 512),
    Configuration("135M", "bf16", 1, 512), Configuration("135M", "bf16", 8, 128),
    Configuration("135M", "fp32", 1, 32), Configuration("135M", "fp32", 4, 128),
)  # fmt: skip


def main() -> None:
    """Run every configuration, or those named, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", help='names of configurations, such as "10M bf16 1x128"'
    )
    parser.add_argument("--refresh", action="store_true", help="probe the machine again first")
    chosen = parser.parse_args()
    machine = probe(talk=lambda text: print(text, file=sys.stderr), refresh=chosen.refresh)
    print(f"{machine.name}, torch {machine.torch}; predicted, measured, error\n")
    print(f"{'':20}{'first token ms':>26}{'per token ms':>26}{'memory MB':>26}")
    errors = [
        _compare(each, machine)
        for each in CONFIGURATIONS
        if not chosen.only or each.name in chosen.only
    ]
    times = [abs(error) for first, each, *_ in errors for error in (first, each)]
    memories = [abs(memory) for *_, memory, _ in errors]
    answer = {
        "median": round(median(times), 4), "worst": round(max(times), 4),
        "memory_median": round(median(memories), 4), "memory_worst": round(max(memories), 4),
        "rows": len(errors), "other_load": round(mean(load for *_, load in errors), 2),
    }  # fmt: skip
    print(f"\n{json.dumps(answer)}")


def _compare(each: Configuration, machine: Machine) -> tuple[float, float, float, float]:
    spec = MODELS[each.model]
    asked = Question(
        prompt=each.prompt, tokens=TOKENS, precision=each.precision, sequences=each.sequences
    )
    predicted = predict_answer(spec, asked, machine)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.toml"
        save(spec, path)
        words = [str(path), each.precision, each.sequences, each.prompt, TOKENS,
                 machine.device.threads]  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(WORKER), *map(str, words)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    measured = json.loads(done.stdout.splitlines()[-1])
    pairs = (
        (predicted.first_token_s * 1e3, measured["first_token_s"] * 1e3),
        (predicted.per_token_s * 1e3, measured["per_token_s"] * 1e3),
        (predicted.memory.peak / 1e6, measured["memory_bytes"] / 1e6),
    )
    told = [f"{a:9.2f}{b:9.2f}{a / b - 1:+8.1%}" for a, b in pairs]
    print(f"{each.name:20}{''.join(told)}", flush=True)
    first, rest, memory = (a / b - 1.0 for a, b in pairs)
    return first, rest, memory, measured["other_load"]


if __name__ == "__main__":
    main()
