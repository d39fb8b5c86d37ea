"""What exchanging less between hosts gains in time, and costs in loss, over a slow network.

Emulates two hosts of one core each (hosts.py) and trains a small model of Shakespeare on as many
tokens with each [train.exchange]. Prints a table, and as the last line all of it as JSON:

    python benchmarks/exchange.py [--rate 100mbit] [--steps 300] [--seeds 1] [--only exact bf16]

A step is the median over rounds of 50, the first left out: warm-up, which PowerSGD leaves exact.
Beside it stands what it takes undisturbed: the quickest tenth of steps that meet and of those that
do not, which other work on the machine delays least.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from hosts import CannotEmulate, Hosts, hosts
from network import NARROWS, checked, host_environment
from peers.commit import commit

from narrows.plan.gradients import gradient_bytes
from narrows.spec.exchange import LocalSteps
from narrows.spec.plan import Plan
from narrows.spec.record import load

EXCHANGES: dict[str, tuple[str, ...]] = {
    "exact": (),
    "bf16": ("type=bf16",),
    "powersgd 4": ("type=powersgd", "rank=4"),
    "local steps 10": ("type=local_steps", "every=10"),
    "local steps 50": ("type=local_steps", "every=50"),
}
JOB = """\
name = "exchange"
seed = {seed}
[data]
corpus = "shakespeare"
tokenizer = "character"
[model]
kind = "gpt2"
layers = 4
width = 192
heads = 4
context = 128
[train]
steps = {steps}
batch_sequences = 16
learning_rate = 0.002
warmup_steps = 30
evaluate_every = 50
evaluate_sequences = 128
checkpoint_every = {steps}
[layout]
data = 2
micro_batch = 8
"""
ROUND = 50


class Run(NamedTuple):
    """One training: its plan, seconds of its steps, and validation losses by step."""

    plan: Plan
    moved: float
    seconds: list[float]
    losses: dict[int, float]

    @property
    def step_seconds(self) -> float:
        """The median over rounds."""
        rounds = [self.seconds[at : at + ROUND] for at in range(0, len(self.seconds), ROUND)]
        return median(fmean(each) for each in rounds[1:])

    @property
    def quick_seconds(self) -> float:
        """By the quickest tenth, of steps that meet and of others as often as they are."""
        exchange, later = self.plan.exchange, enumerate(self.seconds[ROUND:], 1)
        every = exchange.every if isinstance(exchange, LocalSteps) else 1
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for number, seconds in later:
            kinds[number % every == 0].append(seconds)
        return (_quick(kinds[True]) + (every - 1) * _quick(kinds[False])) / every

    @property
    def loss(self) -> float:
        """The last."""
        return self.losses[max(self.losses)]


def _quick(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 10] if seconds else 0.0


def main() -> int:
    """Train with each exchange, or those chosen, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", default="100mbit", help="of tc")
    parser.add_argument("--steps", type=int, default=300, help="a multiple of 50, two at least")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(EXCHANGES), choices=EXCHANGES)
    chosen = parser.parse_args()
    if chosen.steps % ROUND or chosen.steps < 2 * ROUND:
        parser.error(f"--steps must be a multiple of {ROUND}, and {2 * ROUND} at least")
    found: dict[str, list[Run]] = {name: [] for name in chosen.only}
    try:
        with hosts(2, chosen.rate) as made, tempfile.TemporaryDirectory() as folder:
            checked(*made.run([*NARROWS, "probe", "--link"], host_environment()))
            for seed in range(chosen.seeds):
                for name in chosen.only:
                    run = _run(made, name, Path(folder), chosen.steps, seed)
                    found[name].append(run)
                    print(f"{name}, seed {seed}: {run.step_seconds:.3f} s a step, "
                          f"loss {run.loss:.4f}", file=sys.stderr, flush=True)  # fmt: skip
    except CannotEmulate as why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    rows = {name: _row(runs) for name, runs in found.items()}
    _print(rows)
    rest = {"rate": chosen.rate, "steps": chosen.steps, "seeds": chosen.seeds, "commit": commit()}
    print(json.dumps({**rest, "exchanges": rows}))
    return 0


def _run(made: Hosts, name: str, folder: Path, steps: int, seed: int) -> Run:
    """A training, planned by the link that was measured."""
    place = folder / f"{name.replace(' ', '-')}-{seed}"
    job, path, run = (place.with_suffix(end) for end in (".job.toml", ".toml", ""))
    job.write_text(JOB.format(steps=steps, seed=seed))
    sets = [f"--set=train.exchange.{each}" for each in EXCHANGES[name]]
    environment = host_environment()
    checked(made.run_alone([*NARROWS, "plan", str(job), *sets, "-o", str(path)], environment))
    train = [*NARROWS, "train", str(path), "--run", str(run)]
    checked(*made.run(train, environment, seconds=3600.0))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    losses = {x["step"]: x["validation_loss"] for x in lines if "validation_loss" in x}
    plan = load(Plan, path)
    return Run(plan, _bytes(plan, run), seconds, losses)


def _bytes(plan: Plan, run: Path) -> float:
    """What a step adds up."""
    from safetensors import safe_open

    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    with safe_open(newest / "weights-00000-of-00002.safetensors", "pt") as file:
        shapes = [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    return gradient_bytes(plan.exchange, shapes)


def _row(runs: list[Run]) -> dict[str, object]:
    return {
        "bytes": round(runs[0].moved),
        "step_seconds": round(median(run.step_seconds for run in runs), 4),
        "quick_seconds": round(median(run.quick_seconds for run in runs), 4),
        "predicted_seconds": round(runs[0].plan.predicted.step_seconds, 4),
        "loss": round(fmean(run.loss for run in runs), 4),
        "losses": [round(run.loss, 4) for run in runs],
        "curve": {at: round(fmean(r.losses[at] for r in runs), 4) for at in runs[0].losses},
    }  # fmt: skip


def _print(rows: dict[str, dict[str, object]]) -> None:
    first = next(iter(rows.values()))
    print(f"{'':26}{'median':>16}{'undisturbed':>16}{'predicted':>16}")
    step = f"{'step s':>9}{'times':>7}"
    print(f"{'':16}{'MB a step':>10}{3 * step}{'loss':>9}{'':>9}   each seed")
    for name, row in rows.items():
        times = "".join(
            f"{float(row[kind]):9.3f}{float(first[kind]) / float(row[kind]):7.2f}"
            for kind in ("step_seconds", "quick_seconds", "predicted_seconds")
        )
        more = float(row["loss"]) - float(first["loss"])
        each = " ".join(f"{loss:.4f}" for loss in row["losses"])
        moved = float(row["bytes"]) / 1e6
        print(f"{name:16}{moved:10.3f}{times}{row['loss']:9.4f}{more:+9.4f}   {each}")


if __name__ == "__main__":
    sys.exit(main())
