"""Reading and writing with a model in 4 or 8 bits: ours against llama.cpp, OpenVINO GenAI and
transformers.

    python benchmarks/infer.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--turns 3]

All take the same file, the same tokens, and as many threads, one at a time, A B C A B C. Rates are
of 512 tokens read, and of 64 written greedily by 1, 8 and 32 texts at once. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from peers.commit import commit
from peers.environment import python_of, variables

from narrows.data import published
from narrows.hardware.probe import machine_known
from narrows.model.opening import opened

HERE = Path(__file__).resolve().parent
PEERS = {"narrows": "infer_ours.py", "llama_cpp": "infer_llama_cpp.py",
         "openvino": "infer_openvino.py", "transformers_gguf": "infer_transformers.py"}  # fmt: skip
STREAMS, TOKENS, PROMPT = (1, 8, 32), 64, 512
FIGURES = ("prefill", *(f"streams_{count}" for count in STREAMS))
TEXT = """\
It was the best of times, it was the worst of times; a machine of two cores and a model of a few
hundred megabytes stood between what was asked and what was answered, and every word that came out
had first to pass through a narrow place. """


def main() -> None:
    """Run all in turn, and print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    path = Path(asked.model).resolve()
    task = {
        "model": str(path), "prompt": prompt(path), "streams": STREAMS, "tokens": TOKENS,
        "threads": len(os.sched_getaffinity(0)),
    }  # fmt: skip
    scores: dict[str, list[dict]] = {peer: [] for peer in asked.peers}
    for turn in range(asked.turns):
        for peer, turns in scores.items():
            done = take_turn(peer, task)
            if done is not None:
                turns.append(done)
                shown = "  ".join(f"{n} {done[n]:.0f}" for n in FIGURES if n in done)
                say(f"turn {turn + 1}  {peer:<18} {shown}")
    medians = {peer: of_turns(turns) for peer, turns in scores.items() if turns}
    print(f"{'':<18}" + "".join(f"{name:>12}" for name in (*FIGURES, "memory MB", "start s")))
    for peer, each in medians.items():
        cells = [f"{each[name]:12.0f}" if name in each else f"{'':>12}" for name in FIGURES]
        memory, start = each["memory_bytes_peak"] / 1e6, each["start_seconds"]
        print(f"{peer:<18}" + "".join(cells) + f"{memory:12.0f}{start:12.1f}")
    machine = machine_known()
    print(json.dumps({
        "machine": machine.name if machine else "not probed", "commit": commit(),
        "model": path.name, "threads": task["threads"], "tokens_per_s": medians,
        "ratios_to_best_peer": ratios(medians),
    }))  # fmt: skip


def prompt(path: Path) -> list[int]:
    """Tokens of the text, as many as are read."""
    tokenizer = published.words(path, opened(path).facts).tokenizer
    return tokenizer.encode(TEXT * 20)[:PROMPT]


def take_turn(peer: str, task: dict) -> dict | None:
    """Run one once; None, and a word why, where it failed."""
    environment = variables(peer, threads=task["threads"])
    python = Path(sys.executable)
    if peer == "narrows":
        environment["PYTHONPATH"] = str(HERE.parent / "src")
    else:
        python = python_of(peer, talk=say)
    command = [str(python), str(HERE / "peers" / PEERS[peer]), json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"{peer} ended with {done.returncode}:\n{done.stderr[-1500:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def of_turns(turns: list[dict]) -> dict:
    """The median of each figure."""
    numbers = [name for name, value in turns[0].items() if isinstance(value, int | float)]
    return {name: round(statistics.median(turn[name] for turn in turns), 2) for name in numbers}


def ratios(medians: dict[str, dict]) -> dict[str, float]:
    """Ours over the best of the others, figure by figure; memory the other way: below 1 is less."""
    ours, found = medians.get("narrows", {}), {}
    for name in (*FIGURES, "memory_bytes_peak"):
        others = [
            each[name] for peer, each in medians.items() if peer != "narrows" and name in each
        ]
        if others and name in ours:
            best = min(others) if name == "memory_bytes_peak" else max(others)
            found[name] = round(ours[name] / best, 2)
    return found


def say(text: str) -> None:
    """Talk, to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
