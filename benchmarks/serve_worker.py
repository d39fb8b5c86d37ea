"""Worker: the requests of a load through narrows' scheduler, without a server before it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from load import Mix, requests

from narrows.infer.generate import Writer, tokens_of
from narrows.infer.packed import PackedWriter
from narrows.infer.packed_core import PackedCore
from narrows.infer.ready import named
from narrows.infer.requests import Request
from narrows.infer.sampling import Sampling
from narrows.infer.scheduler import Scheduler


def main() -> None:
    """Print tokens a second, of as many texts at once as there are slots."""
    task = json.loads(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = str(task["threads"])
    writer = named(Path(task["model"]), None, lambda text: None).writer()
    assert isinstance(writer, PackedWriter)
    core = PackedCore(writer.model, task["slots"], task["context"])
    scheduler = Scheduler(core, writer.tokenizer, queue=10**6)
    mix = Mix(**task["mix"])
    answered(scheduler, asked(mix._replace(count=2, seed=mix.seed + 1), writer))
    some = asked(mix, writer)
    began = time.perf_counter()
    tokens = answered(scheduler, some)
    seconds = time.perf_counter() - began
    scheduler.close()
    print(json.dumps(tokens / seconds))


def asked(mix: Mix, writer: Writer) -> list[Request]:
    """The mix's requests, as the server makes them."""
    bodies = [json.loads(each.body) for each in requests(mix, "", None)]
    return [
        Request(
            prompt=tuple(tokens_of(body["prompt"], writer)), tokens_max=body["max_tokens"],
            sampling=Sampling(temperature=body["temperature"], seed=body["seed"]),
        )
        for body in bodies
    ]  # fmt: skip


def answered(scheduler: Scheduler, some: list[Request]) -> int:
    """How many tokens all of them came to."""
    answers = [scheduler.submit(each) for each in some]
    return sum(piece.tokens for answer in answers for piece in answer)


if __name__ == "__main__":
    main()
