"""How long `narrows plan` takes to answer: its wall time, the interpreter's start included.

    python benchmarks/answer.py [--runs 5]

Each question is asked of a fresh process, in turn: small models and machines, the largest, and
those whose searches are longest. Processor time is beside the wall time, which a busy machine
lengthens. The last line is JSON: the median and the worst of the questions' medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from statistics import median

GOAL_S = 0.5
QUESTIONS = (
    "--machine h100-sxm --model gpt2",
    "--machine 8xh100-sxm --model llama-3.1-8b",
    "--machine 8xa100-80gb-sxm --model mistral-7b --tune lora",
    "--machine 64xtpu-v5p --model gemma-2-27b",
    "--machine 16x8xh100-sxm --model llama-3.1-70b",
    "--machine 16x8xh100-sxm --model llama-3.1-70b --goal energy --context 32768 --batch 128",
    "--machine 2048x8xh100-sxm --model llama-3.1-405b",
    "--machine 32x8xh800-sxm --model deepseek-v3",
    "--machine 96xh200 --model gpt-oss-120b",
    "--machine 8xh100-sxm --budget $10,000",
    "--machine h100-sxm --model llama-3.1-8b --serve 32",
    "--machine 8xh100-sxm --model llama-3.1-70b --rate 5requests/s --first-token 1s",
)


def main() -> None:
    """Ask every question several times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    taken: dict[str, list[tuple[float, float]]] = {question: [] for question in QUESTIONS}
    for _ in range(runs):
        for question in QUESTIONS:
            taken[question].append(asked(question))
    print(f"{'wall s':>8}{'worst':>8}{'processor s':>13}   narrows plan")
    medians = []
    for question, times in taken.items():
        walls, processors = zip(*times, strict=True)
        medians.append(median(walls))
        print(f"{medians[-1]:8.3f}{max(walls):8.3f}{median(processors):13.3f}   {question}")
    over = sum(each > GOAL_S for each in medians)
    print(f"{len(QUESTIONS)} questions, {runs} times each; {over} over the goal of {GOAL_S} s")
    print(json.dumps({"median_s": round(median(medians), 4), "worst_s": round(max(medians), 4)}))


def asked(question: str) -> tuple[float, float]:
    """Wall and processor seconds of a fresh process."""
    command = [sys.executable, "-m", "narrows", "plan", *question.split()]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, begin = _processor(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_core,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - begin, _processor() - before


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
