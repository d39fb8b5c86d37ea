"""A served model under load: time to the first token, between tokens, and tokens a second.

    python benchmarks/serve.py --model SmolLM2-135M-Instruct.Q4_1.gguf --clients 32
    python benchmarks/serve.py --model MODEL.gguf --rate 4 --prompt 8-200 --answer 16-200
    python benchmarks/serve.py --url http://127.0.0.1:8080 --served-name NAME --clients 8

Clients ask one after the other (--clients), or requests come at random (--rate, a second). With
--model `narrows serve` is started for it, and beside it the engine's own rates are measured: of as
many texts that only go on (decode), and of the same requests without a server (same). llama.cpp's
server, compiled once, takes its turn with --llama. Last line: JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from infer import prompt, take_turn
from load import Mix, Told, percentiles, requests, run
from peers.commit import commit
from peers.llama_server import llama_server

from narrows.hardware.probe import machine_known

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
LLAMA_PORT, START_S, CONTEXT = 8137, 60.0, 1024


def main() -> None:
    """Ask each server the same, and print what came, and the JSON."""
    asked = arguments()
    mix = Mix(asked.requests, asked.prompt, asked.answer, asked.temperature, asked.seed)
    found: dict[str, dict] = {}
    for _ in range(asked.turns):
        for name, starting in servers(asked):
            with starting as server:
                took = measured(server, mix, asked)
            if name not in found or took["tokens_per_s"] > found[name]["tokens_per_s"]:
                found[name] = took
            say(f"{name}: {json.dumps(took)}")
    own = engine(asked, mix) if asked.model and asked.clients else {}
    for name, rate in own.items():
        share = found["narrows"]["tokens_per_s"] / rate
        found["narrows"][f"share_of_{name}"] = round(share, 3)
    for name, each in found.items():
        print(
            f"{name:<10}{each['tokens_per_s']:8.0f} tokens/s   first token p50 "
            f"{each['first_s']['p50'] * 1e3:.0f} ms, p99 {each['first_s']['p99'] * 1e3:.0f} ms   "
            f"between p50 {each['between_s']['p50'] * 1e3:.1f} ms, "
            f"p99 {each['between_s']['p99'] * 1e3:.1f} ms"
        )
    for name, rate in own.items():
        share = found["narrows"][f"share_of_{name}"]
        print(f"the engine, {name}: {rate:.0f} tokens/s, of which {share:.0%} are served")
    machine = machine_known()
    print(json.dumps({
        "machine": machine.name if machine else "not probed", "commit": commit(),
        "model": Path(asked.model).name if asked.model else asked.served_name,
        "clients": asked.clients, "rate_per_s": asked.rate, "mix": mix._asdict(),
        "engine_tokens_per_s": own, "servers": found,
    }))  # fmt: skip


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file, to be served")
    parser.add_argument("--url", help="a server that runs, instead")
    parser.add_argument("--served-name", default="model", help="its model, there")
    parser.add_argument("--clients", type=int, help="that ask one after the other")
    parser.add_argument("--rate", type=float, help="requests a second that come at random")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=span, default=(8, 24), metavar="N-M", help="phrases")
    parser.add_argument("--answer", type=span, default=(64, 64), metavar="N-M", help="tokens")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=1, help="the best of so many counts")
    parser.add_argument("--llama", action="store_true", help="llama.cpp's server takes its turn")
    asked = parser.parse_args()
    if (asked.model is None) == (asked.url is None):
        parser.error("give either --model or --url")
    if (asked.clients is None) == (asked.rate is None):
        parser.error("give either --clients or --rate")
    return asked


def span(text: str) -> tuple[int, int]:
    """8-24, or 64 alone."""
    least, _, most = text.partition("-")
    return int(least), int(most or least)


class Server(NamedTuple):
    """Its address, what it calls the model, and its process where that is ours."""

    url: str
    model: str
    process: int | None = None


def servers(
    asked: argparse.Namespace,
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Server]]]:
    """Each with how it is started."""
    if asked.url:
        yield "given", contextlib.nullcontext(Server(asked.url, asked.served_name))
        return
    yield "narrows", ours(asked)
    if asked.llama:
        yield "llama_cpp", theirs(asked)


@contextlib.contextmanager
def ours(asked: argparse.Namespace) -> Iterator[Server]:
    """narrows serve, with a slot for each client."""
    slots = str(asked.clients or 32)
    words = [sys.executable, "-m", "narrows", "serve", asked.model, "--port", "0", "--slots", slots,
             "--context", str(CONTEXT), "--queue", "1000"]  # fmt: skip
    with started(words, {"PYTHONPATH": path_of(SOURCE)}, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield Server(found[0], Path(asked.model).name.removesuffix(".gguf"), process.pid)
                return
    sys.exit("error: narrows serve ended before it listened")


@contextlib.contextmanager
def theirs(asked: argparse.Namespace) -> Iterator[Server]:
    """llama.cpp's, with a slot for each client."""
    threads, slots = str(len(os.sched_getaffinity(0))), asked.clients or 32
    words = [str(llama_server(talk=say)), "--model", asked.model, "--port", str(LLAMA_PORT),
             "--threads", threads, "--ctx-size", str(CONTEXT * slots), "--parallel", str(slots),
             "--no-webui"]  # fmt: skip
    url = f"http://127.0.0.1:{LLAMA_PORT}"
    with started(words, {}, stderr=subprocess.DEVNULL) as process:
        for _ in range(int(START_S / 0.5)):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                yield Server(url, asked.model, process.pid)
                return
            time.sleep(0.5)
    sys.exit("error: llama-server does not answer")


@contextlib.contextmanager
def started(words: list[str], more: dict[str, str], stderr: int) -> Iterator[subprocess.Popen]:
    """A process, told to end at the end."""
    variables = {**os.environ, **more}
    variables.pop("OMP_NUM_THREADS", None)
    process = subprocess.Popen(
        words, env=variables, stdout=subprocess.DEVNULL, stderr=stderr, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def measured(server: Server, mix: Mix, asked: argparse.Namespace) -> dict:
    """What the mix comes to, after a few requests that warm the server; and what the processors
    gave to it, in microseconds a token.
    """
    run(server.url, requests(mix._replace(count=2, seed=mix.seed + 1), server.model, None), 1)
    sent = requests(mix, server.model, asked.rate)
    before, own, began = processor_s(server), time.process_time(), time.perf_counter()
    came = run(server.url, sent, asked.clients)
    seconds, own, after = (
        time.perf_counter() - began,
        time.process_time() - own,
        processor_s(server),
    )
    told = [each.told() for each in came]
    spent = {name: after[name] - before[name] for name in before} | {"clients": own}
    tokens = sum(each.tokens for each in told)
    return figures(told, seconds) | {
        "processor_us": {name: round(each / tokens * 1e6, 1) for name, each in spent.items()}
    }  # fmt: skip


def processor_s(server: Server) -> dict[str, float]:
    """What its threads were given so far: the first, which is ours' event loop, and the others."""
    if server.process is None:
        return {}
    spent = {"first thread": 0.0, "others": 0.0}
    for folder in Path(f"/proc/{server.process}/task").iterdir():
        # So many nanoseconds on a processor stand first.
        own = int((folder / "schedstat").read_text().split()[0]) / 1e9
        spent["first thread" if int(folder.name) == server.process else "others"] += own
    return spent


def figures(told: list[Told], seconds: float) -> dict:
    """Of answers that came whole."""
    whole = [each for each in told if each.status == 200 and each.seconds]
    if not whole:
        sys.exit(f"error: no answer came; statuses {sorted({each.status for each in told})}")
    between = [
        later - sooner
        for each in whole
        for sooner, later in zip(each.seconds, each.seconds[1:], strict=False)
    ]
    return {
        "tokens_per_s": round(sum(each.tokens for each in whole) / seconds, 1),
        "first_s": percentiles([each.seconds[0] for each in whole]),
        "between_s": percentiles(between or [0.0]),
        "whole": len(whole), "others": len(told) - len(whole), "seconds": round(seconds, 2),
    }  # fmt: skip


def engine(asked: argparse.Namespace, mix: Mix) -> dict[str, float]:
    """Tokens a second without a server, the best of as many turns: of as many texts that only go
    on, and of the same requests, their prompts included.
    """
    path, threads = Path(asked.model).resolve(), len(os.sched_getaffinity(0))
    task = {"model": str(path), "prompt": prompt(path), "streams": (asked.clients,), "tokens": 64,
            "threads": threads}  # fmt: skip
    turns = [take_turn("narrows", task) for _ in range(asked.turns)]
    same = {"model": str(path), "mix": mix._asdict(), "slots": asked.clients, "context": CONTEXT,
            "threads": threads}  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": path_of(SOURCE), "OMP_NUM_THREADS": str(threads)}
    worker = [sys.executable, str(HERE / "serve_worker.py"), json.dumps(same)]
    rates = [
        float(subprocess.run(worker, env=variables, capture_output=True, check=True).stdout)
        for _ in range(asked.turns)
    ]
    decode = max(turn[f"streams_{asked.clients}"] for turn in turns if turn)
    return {"decode": round(decode, 1), "same": round(max(rates), 1)}


def path_of(source: Path) -> str:
    """For PYTHONPATH: our source before what is there."""
    return os.pathsep.join(filter(None, (str(source), os.environ.get("PYTHONPATH"))))


def say(text: str) -> None:
    """Talk, to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
