"""Speed, memory and loss of tuning a published model: ours against transformers' Trainer and PEFT.

    python benchmarks/tune.py --start SmolLM2-135M-Instruct.gguf [--ways full lora] [--turns 2]

All start from the same weights and read the same text in the same order, Shakespeare in rows of
1,024 tokens, 4 rows a step. Contestants run one at a time, A B C A B C; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
from peers.commit import commit
from peers.contest import Contestant, Score, Turn, take_turn
from peers.environment import CACHE, python_of

from narrows.data import corpora, tokenizers
from narrows.data.plays import scenes
from narrows.hardware.probe import probe
from narrows.plan.plan import make_plan
from narrows.spec.job import DataSpec, Job
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.spec.record import from_builtins, save
from narrows.train.start import started

CONTEXT, BATCH, RANK = 1024, 4, 16
RATES = {"full": 5e-5, "lora": 2e-4}


def main() -> None:
    """Run both ways and print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", required=True, help="a model's folder or GGUF file")
    parser.add_argument("--ways", nargs="*", default=["full", "lora"], choices=list(RATES))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--measured", type=int, default=4, help="steps measured in a turn")
    asked = parser.parse_args()
    folder = exported(Path(asked.start))
    machine = probe(talk=say)
    tokens = write_tokens(folder)
    python_of("peft", talk=say)
    answer: dict[str, object] = {"machine": machine.name, "commit": commit()}
    for way in asked.ways:
        plan = plan_of(folder, way, machine)
        path = CACHE / f"plan-tune-{way}.toml"
        save(plan, path)
        ours = Contestant(
            name=f"narrows {way}", peer="narrows", script="ours.py", setting={"plan": str(path)}
        )
        scores = [Score(each) for each in (ours, *peers_of(folder, way))]
        run(scores, tokens, asked.turns, Turn(warmup=2, measured=asked.measured, seconds_most=120))
        answer[way] = compared([score for score in scores if score.step_seconds], plan)
    print(json.dumps(answer))


def exported(start: Path) -> Path:
    """The model as a Hugging Face folder, which all can read."""
    if start.is_dir():
        return start
    folder = CACHE / f"start-{start.stem}"
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "narrows", "export", str(start), "--to", str(folder)]
        subprocess.run(command, check=True)
    return folder


def write_tokens(folder: Path) -> Path:
    """Rows of the plays in the model's own tokens [rows, T + 1] int32."""
    path = CACHE / "tokens-tune.npy"
    if not path.exists():
        sources = corpora.sources(corpora.find(DataSpec(corpus="shakespeare")))
        each = (Path(source.path).read_text(encoding="utf-8") for source in sources[:4])
        text = "\n".join(scene for play in each for scene in scenes(play))
        ids = tokenizers.read(folder / tokenizers.FILE).encode(text)
        rows = len(ids) // (CONTEXT + 1)
        cut = numpy.array(ids[: rows * (CONTEXT + 1)], dtype=numpy.int32)
        numpy.save(path, cut.reshape(rows, CONTEXT + 1))
    return path


def plan_of(folder: Path, way: str, machine: Machine) -> Plan:
    """Our layout, by the plan's own search."""
    train: dict[str, object] = {
        "steps": 100_000, "batch_sequences": BATCH, "learning_rate": RATES[way],
        "schedule": "constant", "warmup_steps": 0,
    }  # fmt: skip
    if way == "lora":
        train["adapter"] = {"type": "lora", "rank": RANK, "alpha": 2 * RANK}
    job = {
        "name": f"tune-{way}", "model": {"start": str(folder), "context": CONTEXT}, "train": train,
        "layout": {"processes": 1},
    }  # fmt: skip
    wanted = from_builtins(Job, job)
    return make_plan(wanted, machine, None, started(folder))


def peers_of(folder: Path, way: str) -> list[Contestant]:
    """The Trainer in bf16, eager and compiled, at micro-batches of 4 and 1; LoRA by PEFT, on
    weights in fp32 under autocast and in bf16.
    """
    found = []
    kinds = ("fp32", "bf16") if way == "lora" else ("fp32",)
    for weights in kinds:
        for compiled in (False, True):
            for micro in (4, 1):
                setting: dict[str, object] = {
                    "start": str(folder), "precision": "bf16", "compile": compiled,
                    "micro_batch": micro, "weights": weights, "learning_rate": RATES[way],
                    "logging": "steps",
                }  # fmt: skip
                setting |= {"rank": RANK} if way == "lora" else {}
                name = f"transformers {way} bf16" + (" compiled" if compiled else "")
                name += " on bf16 weights" if weights == "bf16" else ""
                found.append(
                    Contestant(name=name, peer="peft", script="hf_trainer.py", setting=setting)
                )
    return found


def run(scores: list[Score], tokens: Path, turns: int, turn: Turn) -> None:
    """All in turn; after the first, ours and the peers within a tenth of their best."""
    threads = len(os.sched_getaffinity(0))
    work = {"batch": BATCH, "context": CONTEXT}
    for number in range(turns):
        ran = [score.seconds for score in scores[1:] if score.step_seconds]
        best = min(ran, default=0.0)
        for score in scores:
            hopeful = score is scores[0] or (score.step_seconds and score.seconds < 1.1 * best)
            if number and not hopeful:
                continue
            done = take_turn(score.contestant, work, tokens, turn, threads=threads, talk=say)
            if done is not None:
                score.add(done)
                rate = BATCH * CONTEXT / score.turns[-1]
                say(f"turn {number + 1}  {score.contestant.label:<60} {rate:8.0f} tokens/s")


def compared(scores: list[Score], plan: Plan) -> dict[str, object]:
    """The table, and ours beside the quickest and the leanest peer and beside what was planned."""
    for score in scores:
        losses = " ".join(f"{loss:.3f}" for loss in score.last["losses"])
        print(f"{score.contestant.label:<60} {BATCH * CONTEXT / score.seconds:7.0f} tokens/s "
              f"{score.memory_bytes_peak / 1e6:7.0f} MB  losses {losses}")  # fmt: skip
    ours, *peers = scores
    quickest = min(peers, key=lambda each: each.seconds)
    leanest = min(peers, key=lambda each: each.memory_bytes_peak)
    last = min(len(ours.last["losses"]), len(quickest.last["losses"])) - 1
    apart = ours.last["losses"][last] / quickest.last["losses"][last] - 1.0
    predicted = plan.predicted
    return {
        "tokens_per_s": round(BATCH * CONTEXT / ours.seconds, 1),
        "best_peer": quickest.contestant.label,
        "speed_ratio": round(quickest.seconds / ours.seconds, 3),
        "memory_ratio": round(ours.memory_bytes_peak / quickest.memory_bytes_peak, 3),
        "memory_ratio_to_leanest": round(ours.memory_bytes_peak / leanest.memory_bytes_peak, 3),
        "loss_apart": round(apart, 4),
        "step_error": round(predicted.step_seconds / ours.seconds - 1.0, 3),
        "memory_error": round(predicted.memory.peak / ours.memory_bytes_peak - 1.0, 3),
    }


def say(text: str) -> None:
    """Talk, to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
