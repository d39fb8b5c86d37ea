"""Keys and values in int8 beside bf16: what a text says, what they take, and how quick a token is.

    python benchmarks/cache.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--past 2048] [--texts 1 8]

The text is Shakespeare's, in rows of so many tokens; both are compared with the same weights in
fp32 as torch computes them. Beside each other they differ by more than by their caches: the least
change has activations rounded otherwise, too. Tokens are timed behind so many positions that were
read, one of each text at a time; int8 and bf16 take turns, and each counts by its best step. Last
line: JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from peers.commit import commit

from narrows.data import corpora, pieces, reading
from narrows.data.windows import Rows
from narrows.evaluate.divergence import Divergence, by_packed, by_torch, divergences
from narrows.infer.loading import load
from narrows.infer.packed import PackedWriter
from narrows.infer.writer import load_writer
from narrows.kernels.decoder import Run
from narrows.spec.job import DataSpec
from narrows.spec.machine import CachePrecision
from narrows.spec.record import to_builtins

KINDS: tuple[CachePrecision, ...] = ("bf16", "int8")


def main() -> None:
    """Compare, print what came of it, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a GGUF file that is computed packed")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--row", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--past", type=int, nargs="+", default=[2048])
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    writers = {kind: writer_of(Path(asked.model), kind) for kind in KINDS}
    said = compared(Path(asked.model), writers, asked.rows, asked.row)
    for kind, each in said.items():
        print(f"{kind}: {each.tokens} tokens, perplexity {each.perplexity:.3f}, in fp32 "
              f"{each.perplexity_before:.3f}; KL from it {each.kl_mean:.5f} nats, its 99th "
              f"percentile {each.kl_p99:.4f}; the same likeliest token {each.same:.1%}"
              )  # fmt: skip
    held = {kind: bytes_of(writer) for kind, writer in writers.items()}
    print(f"a position takes {held['bf16']:,.0f} bytes in bf16, {held['int8']:,.0f} in int8: "
          f"{held['int8'] / held['bf16']:.3f} times")  # fmt: skip
    timed = [rates(writers, past, texts, asked) for past in asked.past for texts in asked.texts]
    for each in timed:
        print(f"behind {each['past']} positions, {each['texts']} at once: "
              f"{each['bf16']:,.1f} tokens/s in bf16, {each['int8']:,.1f} in int8: "
              f"{each['int8'] / each['bf16']:.2f} times")  # fmt: skip
    print(json.dumps({
        "model": Path(asked.model).name, "commit": commit(), "threads": asked.threads,
        "said": {kind: to_builtins(each) for kind, each in said.items()}, "bytes": held,
        "tokens_per_s": timed,
    }))  # fmt: skip


def writer_of(path: Path, kind: CachePrecision) -> PackedWriter:
    """The model over such a cache."""
    writer = load_writer(path, cache=kind)
    assert isinstance(writer, PackedWriter), "computed by torch"
    return writer


def compared(
    path: Path, writers: dict[CachePrecision, PackedWriter], count: int, length: int
) -> dict[CachePrecision, Divergence]:
    """What each makes of the text."""
    tokens = list[int]()
    for text in plays():
        tokens += writers["bf16"].tokenizer.encode(text)
        if len(tokens) >= count * length:
            break
    rows_BT: Rows = np.array(tokens[: count * length]).reshape(count, length)
    before = by_torch(load(path, precision="fp32").model)
    afters = [by_packed(writers[kind], length) for kind in KINDS]
    found = divergences(before, afters, rows_BT, "shakespeare", print)
    return dict(zip(KINDS, found, strict=True))


def plays() -> Iterator[str]:
    """Documents of Shakespeare."""
    for piece in pieces.pieces(corpora.find(DataSpec(corpus="shakespeare")), "text"):
        yield from reading.documents(piece, "text", lambda reason, size: None)


def bytes_of(writer: PackedWriter) -> float:
    """Of a position."""
    positions = 256
    return writer.decoding(positions).cache_bytes / positions


def rates(
    writers: dict[CachePrecision, PackedWriter], past: int, texts: int, asked: argparse.Namespace
) -> dict[str, float]:
    """Tokens a second of all texts together, by kind."""
    steps = {kind: stepping(writers[kind], past, texts) for kind in KINDS}
    best = dict.fromkeys(KINDS, float("inf"))
    for _ in range(asked.turns):
        for kind, step in steps.items():
            began = time.perf_counter()
            next(step)
            best[kind] = min(best[kind], time.perf_counter() - began)
    return {"past": past, "texts": texts, **{kind: texts / best[kind] for kind in KINDS}}


def stepping(writer: PackedWriter, past: int, texts: int) -> Iterator[None]:
    """Each time one token more of each text, at the same position over and over."""
    decoder = writer.decoder(past + 1, rows=max(128, texts))
    caches = [decoder.cache() for _ in range(texts)]
    vocabulary = writer.tokenizer.vocabulary
    decoder.read(caches[0], [7 * place % vocabulary for place in range(past)], 0)
    for cache in caches[1:]:
        cache.copy_(caches[0])
    runs = [Run(cache, past, 1) for cache in caches]
    while True:
        decoder.step(runs, [5] * texts, range(texts))
        yield


if __name__ == "__main__":
    main()
