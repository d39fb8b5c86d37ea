"""Greedy text in fp32, token for token: ours against transformers' generate.

    python benchmarks/parity.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--prompts 64] [--tokens 64]

Both read the same GGUF file, each by its own reader, and go on with the same tokens: beginnings of
scenes of Shakespeare and of files of Python's library, in turn. Where a text parts from the
reference, the first token that differs is shown with the gap between the two largest logits of
either there: two correct programs may part where that is within rounding. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from peers.commit import commit
from peers.environment import python_of, variables

from narrows.data import corpora, pieces, reading
from narrows.infer.loading import Generator, load
from narrows.spec.job import DataSpec

HERE = Path(__file__).resolve().parent
CORPORA, LEAST, MOST = ("shakespeare", "python"), 8, 40
ROUNDING = 1e-3
"""Of logits around 20 in fp32, as far as two orders of summing are apart."""


def main() -> None:
    """Write by both, print where they part, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", help="an interpreter with transformers and gguf (default: "
                        "an environment is made)")  # fmt: skip
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    path = Path(asked.model).resolve()
    generator = load(path, precision="fp32", talk=say)
    prompts = list(islice(beginnings(generator), asked.prompts))
    theirs = reference(asked, {"model": str(path), "prompts": prompts, "tokens": asked.tokens})
    partings = []
    for number, (prompt, other) in enumerate(zip(prompts, theirs["texts"], strict=True)):
        if parting := parted(*written(generator, prompt, asked.tokens), other):
            partings.append({"prompt": number, **parting})
            say(json.dumps(partings[-1]))
    ties = sum(min(each["gap"], each["gap_reference"]) <= ROUNDING for each in partings)
    print(f"{len(prompts) - len(partings)} of {len(prompts)} texts equal, {ties} part at a tie, "
          f"{len(partings) - ties} elsewhere")  # fmt: skip
    print(json.dumps({
        "model": path.name, "commit": commit(), "reference": theirs["by"],
        "prompts": len(prompts), "tokens": asked.tokens, "equal": len(prompts) - len(partings),
        "ties": ties, "partings": partings,
    }))  # fmt: skip


def beginnings(generator: Generator) -> Iterator[list[int]]:
    """Tokens that documents begin with, 8 to 40 of them, from the corpora in turn."""
    documents = [texts(name) for name in CORPORA]
    for number, text in enumerate(text for pair in zip(*documents, strict=False) for text in pair):
        tokens = generator.tokenizer.encode(text[:2000])
        length = LEAST + number * 7 % (MOST - LEAST)
        if len(tokens) > MOST:
            yield [*generator.tokenizer.begin, *tokens][:length]


def texts(name: str) -> Iterator[str]:
    """The documents of a corpus."""
    for piece in pieces.pieces(corpora.find(DataSpec(corpus=name)), "text"):
        yield from reading.documents(piece, "text", lambda reason, size: None)


def written(generator: Generator, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """The likeliest token again and again, up to an end; and how far each was ahead."""
    decoding, found, gaps = generator.decoding(len(prompt) + tokens), list[int](), list[float]()
    following = prompt
    while len(found) < tokens and (not found or found[-1] not in generator.tokenizer.ends):
        logits_V = decoding.read(following)
        found.append(int(logits_V.argmax()))
        second, first = np.partition(logits_V, -2)[-2:]
        gaps.append(float(first - second))
        following = found[-1:]
    return found, gaps


def parted(own: list[int], gaps: list[float], other: dict) -> dict | None:
    """Where and by what gaps two texts part; None where they are equal."""
    if own == other["tokens"]:
        return None
    pairs = zip(own, other["tokens"], strict=False)
    at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(own), len(gaps)) - 1)
    return {"at": at, "gap": gaps[at], "gap_reference": other["gaps"][at]}


def reference(asked: argparse.Namespace, task: dict) -> dict:
    """What transformers writes."""
    python = asked.python or str(python_of("transformers_gguf", talk=say))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(task, file)
        file.flush()
        done = subprocess.run(
            [python, str(HERE / "peers" / "parity_reference.py"), file.name],
            env=variables("transformers_gguf", threads=asked.threads), stdout=subprocess.PIPE,
            text=True, check=True,
        )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def say(text: str) -> None:
    """Talk, to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
