"""Quality of training: our loss curve against the reference implementation's, at equal tokens.

    python benchmarks/quality.py [--steps 200] [--seeds 1]

nanoGPT's character-level task (6 layers, 6 heads, width 384, context 256, batch 64) with its
published optimizer settings, by our plan in its own precision and by transformers'
GPT2LMHeadModel in fp32: the same text, tokens, order and validation windows, each with its own
initial weights. Reference curves are kept, since they take most of the time. Last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
from peers.commit import commit
from peers.environment import CACHE, python_of, variables
from peers.works import WORKS, Work

from narrows.data.loader import Loader
from narrows.data.prepare import prepare
from narrows.hardware.probe import probe
from narrows.plan.plan import make_plan
from narrows.spec.dataset import Dataset
from narrows.spec.job import DataSpec, Job, ModelIntent, TrainIntent
from narrows.spec.optimizer import AdamW
from narrows.spec.record import save

HERE = Path(__file__).resolve().parent
# nanoGPT's config/train_shakespeare_char.py.
RATE, RATE_LEAST, WARMUP, BETAS, DECAY, CLIP = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1, 1.0
DROPOUT = 0.2
WINDOWS = 128
ORDER_SEED = 1
# Two seeds of one implementation differ by about this much at the same step.
NOISE = 0.02


def main() -> None:
    """Train both, print the curves side by side and the verdict."""
    asked = arguments()
    dataset = prepare(DataSpec(corpus="shakespeare", tokenizer="character"), talk=say)
    work = replace(WORKS["W1"], vocabulary=dataset.vocabulary)
    files = write_sequences(dataset, work, asked.steps)
    curves: dict[str, list[list[dict]]] = {"reference": [], "ours": []}
    for seed in range(asked.seeds):
        curves["ours"].append(ours(asked, work, files, seed))
        curves["reference"].append(reference(asked, work, files, seed))
    print_curves(curves, work)
    print(json.dumps(verdict(curves, asked, work)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--every", type=int, default=25, help="steps between evaluations")
    parser.add_argument("--attention-dropout", type=float, default=0.0,
                        help="the reference's; ours has none, so 0 makes the models equal, and "
                             "0.2 is nanoGPT's, which learns more slowly at first")  # fmt: skip
    parser.add_argument("--micro-batch", type=int, default=16, help="the reference's")
    parser.add_argument("--eager", action="store_true", help="do not compile the reference")
    return parser.parse_args()


def write_sequences(dataset: Dataset, work: Work, steps: int) -> dict[str, str]:
    """The training sequences in our loader's order, and the validation windows, as files."""
    key = f"{dataset.digest} {work} {steps} {WINDOWS} {ORDER_SEED}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    counts = {"train": steps * work.batch, "validation": WINDOWS}
    files = {}
    for split, count in counts.items():
        path = CACHE / f"quality-{split}-{digest}.npy"
        if not path.exists():
            loader = Loader(dataset, split, work.context, ORDER_SEED)
            path.parent.mkdir(parents=True, exist_ok=True)
            numpy.save(path, loader.sequences(0, count).astype(numpy.int32))
        files[split] = str(path)
    return files


def ours(asked: argparse.Namespace, work: Work, files: dict[str, str], seed: int) -> list[dict]:
    """Our curve by the plan's own layout."""
    job = Job(
        name="quality",
        seed=seed,
        model=ModelIntent(
            kind="gpt2", layers=work.layers, width=work.width, heads=work.heads,
            vocabulary=work.vocabulary, context=work.context, dropout=DROPOUT,
        ),
        train=TrainIntent(
            steps=asked.steps, batch_sequences=work.batch, learning_rate=RATE, schedule="cosine",
            warmup_steps=min(WARMUP, asked.steps // 2), weight_decay=DECAY, clip=CLIP,
            optimizer=AdamW(beta1=BETAS[0], beta2=BETAS[1]),
        ),
    )  # fmt: skip
    path = CACHE / f"quality-plan-{seed}.toml"
    save(make_plan(job, probe(talk=say), None), path)
    environment = variables("narrows", threads=threads())
    environment["PYTHONPATH"] = str(HERE.parent / "src")
    setting = {"plan": str(path), "steps": asked.steps, "every": asked.every}
    say(f"ours, seed {seed}")
    return train([sys.executable, "quality_ours.py"], work, files, setting, environment)


def reference(
    asked: argparse.Namespace, work: Work, files: dict[str, str], seed: int
) -> list[dict]:
    """The reference's curve, kept from another time where everything that makes it is equal."""
    setting = {
        "steps": asked.steps,
        "every": asked.every,
        "seed": seed,
        "dropout": DROPOUT,
        "attention_dropout": asked.attention_dropout,
        "rate": RATE,
        "rate_least": RATE_LEAST,
        "warmup_steps": min(WARMUP, asked.steps // 2),
        "betas": BETAS,
        "weight_decay": DECAY,
        "clip": CLIP,
        "micro_batch": asked.micro_batch,
        "compile": not asked.eager,
    }
    digest = hashlib.sha256(json.dumps([setting, files]).encode()).hexdigest()[:12]
    kept = CACHE / f"quality-reference-{digest}.json"
    if kept.exists():
        say(f"reference, seed {seed}: kept in {kept}")
        return json.loads(kept.read_text())
    python = python_of("transformers", talk=say)
    say(f"reference, seed {seed}")
    curve = train(
        [str(python), "quality_reference.py"], work, files, setting,
        variables("transformers", threads=threads()),
    )  # fmt: skip
    kept.write_text(json.dumps(curve))
    return curve


def train(
    command: list[str], work: Work, files: dict[str, str], setting: dict, environment: dict
) -> list[dict]:
    """Run a worker to its end, passing its evaluations on; its last line holds the curve."""
    task = {
        "work": work.as_dict(),
        "setting": setting | {"validation": files["validation"]},
        "tokens": files["train"],
        "scratch": str(CACHE / "scratch"),
        "warmup": 0,
        "measured": 0,
        "seconds_most": 0.0,
    }
    python, script = command
    line = "{}"
    with subprocess.Popen(
        [python, str(HERE / "peers" / script), json.dumps(task)],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            if '"curve"' not in line:
                say("  " + line.strip())
    if process.returncode:
        sys.exit(f"error: {script} ended with {process.returncode}")
    return json.loads(line)["curve"]


def print_curves(curves: dict[str, list[list[dict]]], work: Work) -> None:
    """Validation loss of both, mean over the seeds, at equal tokens."""
    print(f"{'step':>6} {'tokens':>10} {'reference':>10} {'ours':>10} {'difference':>11}")
    for point, theirs, mine in rows(curves):
        print(f"{point['step']:6} {point['step'] * work.step_tokens:10} "
              f"{theirs:10.4f} {mine:10.4f} {mine - theirs:+11.4f}")  # fmt: skip


def rows(curves: dict[str, list[list[dict]]]) -> list[tuple[dict, float, float]]:
    """Evaluation points with the mean validation loss of the reference and of ours."""

    def mean(name: str, index: int) -> float:
        return sum(curve[index]["validation"] for curve in curves[name]) / len(curves[name])

    return [
        (point, mean("reference", index), mean("ours", index))
        for index, point in enumerate(curves["reference"][0])
    ]


def verdict(
    curves: dict[str, list[list[dict]]], asked: argparse.Namespace, work: Work
) -> dict[str, object]:
    """No worse: above the reference by less than noise at the end and on average."""
    differences = [mine - theirs for _, theirs, mine in rows(curves)]
    mean, last = sum(differences) / len(differences), differences[-1]
    no_worse = mean <= NOISE and last <= NOISE
    print(f"ours less the reference: {mean:+.4f} on average, {last:+.4f} at the end; "
          f"{'no worse' if no_worse else 'WORSE'} (noise between seeds {NOISE})")  # fmt: skip
    return {
        "benchmark": "quality",
        "commit": commit(),
        "steps": asked.steps,
        "tokens": asked.steps * work.step_tokens,
        "seeds": asked.seeds,
        "attention_dropout_of_reference": asked.attention_dropout,
        "reference_final": rows(curves)[-1][1],
        "ours_final": rows(curves)[-1][2],
        "difference_mean": round(mean, 4),
        "difference_final": round(last, 4),
        "no_worse": no_worse,
    }


def threads() -> int:
    """The cores allowed."""
    import os

    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    """Talk, to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
