"""How long `narrows --help`, `narrows plan` of a published model and, where one is given, the first
token of a GGUF file take, the interpreter included.

    python benchmarks/start.py [--runs 7] [--model SmolLM2-135M-Instruct.gguf]

Wall time of whole processes, the quickest and the median of several. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median

COMMANDS = {
    "python": ["-c", "pass"],
    "help": ["-m", "narrows", "--help"],
    "plan": ["-m", "narrows", "plan", "--machine", "8xh100-sxm", "--model", "llama-3.1-8b"],
}


def main() -> None:
    """Print each command's times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--model", help="a GGUF file")
    chosen = parser.parse_args()
    runs, commands, found = chosen.runs, dict(COMMANDS), {}
    if chosen.model:
        asked = [chosen.model, "--prompt", "The capital of France is", "--tokens", "1"]
        commands["generate"] = ["-m", "narrows", "generate", *asked]
        # Laid out, compiled, and in the system's memory.
        _seconds(commands["generate"])
    for name, arguments in commands.items():
        seconds = [_seconds(arguments) for _ in range(runs)]
        found[name] = round(median(seconds), 3)
        print(f"{name:8} {min(seconds):6.3f} s at best, {median(seconds):6.3f} s at the median")
    print(json.dumps({f"{name}_s": each for name, each in found.items()}))


def _seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
