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
from narrows.hardware.find import has_bf16_unit
from narrows.hardware.probe import probe
from narrows.plan.plan import make_plan
from narrows.spec.job import DataSpec, Job
from narrows.spec.machine import Machine
from narrows.spec.plan import Plan
from narrows.spec.record import from_builtins, save
from narrows.train.start import started

CONTEXT, BATCH, RANK = 1024, 4, 16
RATES = {"full": 5e-5, "lora": 2e-4}
OURS: dict[str, dict[str, tuple[dict[str, object], dict[str, object]]]] = {
    "full": {
        "": ({}, {}),
        "8 bits kept": ({"state_bits": 8}, {"micro_batch": 1, "loss_chunk": 256}),
        "8 bits kept, fused": ({"state_bits": 8, "fused": True}, {"micro_batch": 4}),
        "8 bits kept, recompute": ({"state_bits": 8}, {"micro_batch": 4, "recompute": "full"}),
    },
    "lora": {"": ({}, {})},
}
"""What [train] and [layout] say of each of our contestants; the rest is the plan's choice."""


def main() -> None:
    """Run both ways and print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", required=True, help="a model's folder or GGUF file")
    parser.add_argument("--ways", nargs="*", default=["full", "lora"], choices=list(RATES))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--measured", type=int, default=4, help="steps measured in a turn")
    parser.add_argument("--eager", action="store_true", help="leave compiled peers out")
    asked = parser.parse_args()
    folder = exported(Path(asked.start))
    machine = probe(talk=say)
    tokens = write_tokens(folder)
    python_of("peft", talk=say)
    answer: dict[str, object] = {"machine": machine.name, "commit": commit()}
    for way in asked.ways:
        plans = {name: plan_of(folder, way, name, machine) for name in OURS[way]}
        ours = [Score(contestant(way, name, plan)) for name, plan in plans.items()]
        peers = [Score(each) for each in peers_of(folder, way, machine, eager=asked.eager)]
        turn = Turn(warmup=2, measured=asked.measured, seconds_most=120)
        run(ours, peers, tokens, asked.turns, turn)
        peers = [score for score in peers if score.step_seconds]
        answer[way] = [
            compared(score, plan, peers) for score, plan in zip(ours, plans.values(), strict=True)
        ]
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


def plan_of(folder: Path, way: str, name: str, machine: Machine) -> Plan:
    """Our layout, by the plan's own search where the contestant leaves it open."""
    said, layout = OURS[way][name]
    train: dict[str, object] = {
        "steps": 100_000, "batch_sequences": BATCH, "learning_rate": RATES[way],
        "schedule": "constant", "warmup_steps": 0,
        "optimizer": {"type": "adamw", "beta2": 0.999}, **said,
    }  # fmt: skip
    if way == "lora":
        train["adapter"] = {"type": "lora", "rank": RANK, "alpha": 2 * RANK}
    job = {
        "name": f"tune-{way}", "model": {"start": str(folder), "context": CONTEXT}, "train": train,
        "layout": {"processes": 1, **layout},
    }  # fmt: skip
    wanted = from_builtins(Job, job)
    return make_plan(wanted, machine, None, started(folder))


def contestant(way: str, name: str, plan: Plan) -> Contestant:
    """Ours, with its plan written down."""
    label = f"narrows {way}" + (f", {name}" if name else "")
    path = CACHE / f"plan-tune-{label.removeprefix('narrows ').replace(', ', '-')}.toml"
    save(plan, path)
    return Contestant(name=label, peer="narrows", script="ours.py", setting={"plan": str(path)})


def peers_of(folder: Path, way: str, machine: Machine, *, eager: bool) -> list[Contestant]:
    """The Trainer in bf16, eager and compiled, at micro-batches of 4 and 1; LoRA by PEFT, on
    weights in fp32 under autocast and in bf16. All in fp32 where the processor has no bf16, which
    torch computes there at a tenth of the rate.
    """
    found = []
    precision = "bf16" if has_bf16_unit(machine.processor) else "fp32"
    kinds = ("fp32", "bf16") if way == "lora" and precision == "bf16" else ("fp32",)
    for weights in kinds:
        for compiled in (False,) if eager else (False, True):
            for micro in (4, 1):
                setting: dict[str, object] = {
                    "start": str(folder), "precision": precision, "compile": compiled,
                    "micro_batch": micro, "weights": weights, "learning_rate": RATES[way],
                    "logging": "steps",
                }  # fmt: skip
                setting |= {"rank": RANK} if way == "lora" else {}
                name = f"transformers {way} {precision}" + (" compiled" if compiled else "")
                name += " on bf16 weights" if weights == "bf16" else ""
                found.append(
                    Contestant(name=name, peer="peft", script="hf_trainer.py", setting=setting)
                )
    return found


def run(ours: list[Score], peers: list[Score], tokens: Path, turns: int, turn: Turn) -> None:
    """All in turn; after the first, ours and the peers within a tenth of their best."""
    threads = len(os.sched_getaffinity(0))
    work = {"batch": BATCH, "context": CONTEXT}
    for number in range(turns):
        best = min((score.seconds for score in peers if score.step_seconds), default=0.0)
        for score in (*ours, *peers):
            hopeful = score in ours or (score.step_seconds and score.seconds < 1.1 * best)
            if number and not hopeful:
                continue
            done = take_turn(score.contestant, work, tokens, turn, threads=threads, talk=say)
            if done is not None:
                score.add(done)
                rate = BATCH * CONTEXT / score.turns[-1]
                say(f"turn {number + 1}  {score.contestant.label:<60} {rate:8.0f} tokens/s")


def compared(ours: Score, plan: Plan, peers: list[Score]) -> dict[str, object]:
    """A line each, and ours beside the quickest and the leanest peer and what was planned."""
    for score in (ours, *peers):
        losses = " ".join(f"{loss:.3f}" for loss in score.last["losses"])
        print(f"{score.contestant.label:<60} {BATCH * CONTEXT / score.seconds:7.0f} tokens/s "
              f"{score.memory_bytes_peak / 1e6:7.0f} MB  losses {losses}")  # fmt: skip
    quickest = min(peers, key=lambda each: each.seconds)
    leanest = min(peers, key=lambda each: each.memory_bytes_peak)
    last = min(len(ours.last["losses"]), len(quickest.last["losses"])) - 1
    apart = ours.last["losses"][last] / quickest.last["losses"][last] - 1.0
    predicted = plan.predicted
    return {
        "ours": ours.contestant.label,
        "tokens_per_s": round(BATCH * CONTEXT / ours.seconds, 1),
        "memory_mb": round(ours.memory_bytes_peak / 1e6),
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
