"""narrows serve: a model over HTTP, by OpenAI's interface."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import adapters, folder, guesses, precisions, speak, template
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.infer.server.run import Place
    from narrows.infer.server.service import Limits

_KEY = "NARROWS_API_KEY"
SUMMARY = "Serve a model over HTTP, as OpenAI's clients ask, with a page to talk with it."
EXAMPLES = """\
narrows serve SmolLM2-135M-Instruct.gguf                http://127.0.0.1:8000
narrows serve runs/pirate --port 8080 --slots 4
narrows serve Qwen3-0.6B --template enable_thinking=false   answers without a thought before them
narrows serve SmolLM2-135M-Instruct.gguf --adapter pirate=pirate-lora   two models by name
narrows serve all-MiniLM-L6-v2                          an encoder: /v1/embeddings
narrows serve runs/pirate --api-key-file key.txt --host 0.0.0.0 --tokens-max 512"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="MODEL", help="a run's folder, a published model's "
                        "or its name on the hub, or a GGUF file")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="who may ask: by default this machine "
                        "alone, 0.0.0.0 any")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="0 is any free one (default 8000)")
    parser.add_argument("--api-key", metavar="KEY", help="refuse who does not know it; others see "
                        "it among the processes: rather in NARROWS_API_KEY")  # fmt: skip
    parser.add_argument("--api-key-file", metavar="FILE", help="the same, in a file")
    parser.add_argument("--slots", type=int, default=8, metavar="N",
                        help="texts written at once (default 8)")  # fmt: skip
    parser.add_argument("--queue", type=int, default=64, metavar="N",
                        help="requests that may wait, more are refused (default 64)")  # fmt: skip
    guesses.arguments(parser)
    template.arguments(parser)
    adapters.several(parser)
    parser.add_argument("--context", type=int, metavar="N",
                        help="a prompt and its answer (default the model's)")  # fmt: skip
    parser.add_argument("--tokens-max", type=int, default=4096, metavar="N",
                        help="an answer's most (default 4096)")  # fmt: skip
    precisions.arguments(parser)
    parser.add_argument("--checkpoint", help="best, latest or a step's folder (default best)")


def run(chosen: argparse.Namespace) -> int:
    """Serve until told to end."""
    for name, least in (
        ("slots", 1), ("queue", 0), ("tokens_max", 1), ("port", 0),
    ):  # fmt: skip
        if getattr(chosen, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option} is {getattr(chosen, name)}", hint=f"at least {least}")
    api_key, guessed, options = _api_key(chosen), guesses.of(chosen), template.of(chosen)
    path = folder.of_model(chosen.folder)
    from narrows.infer.engine import Room
    from narrows.infer.ready import named
    from narrows.infer.server.forecast import Asked, measured, predicted, speeds
    from narrows.infer.server.need import need, refuse_too_large, sizes
    from narrows.infer.server.run import Place, reserved, serve
    from narrows.infer.server.service import Limits

    name = path.name.removesuffix(".gguf")
    beside = adapters.named(chosen, name)
    place = Place(name, chosen.host, reserved(chosen.host, chosen.port), api_key)
    limits = Limits(tokens_max=chosen.tokens_max)
    model = named(path, chosen.precision, speak.talk, chosen.checkpoint)
    if not model.laid and _is_encoder(path):
        adapters.refuse_beside(path, "is an encoder", beside)
        return _encode(path, place, chosen, limits)
    found = need(sizes(model), chosen.slots, chosen.context, chosen.cache, beside.values())
    speak.talk(f"takes {found}")
    refuse_too_large(found, path)
    writer = model.writer(cache=chosen.cache, adapters=beside, talk=speak.talk)
    template.refuse_unread(writer.template, options)
    draft = guessed.writer(writer)
    room = Room(chosen.slots, chosen.queue, found.context, guessed.tokens, draft)
    usual = Asked()
    speak.talk(predicted(speeds(writer, path, chosen.slots, usual), usual))
    tally = serve(writer, place, room, limits, speak.talk, options)
    asked = Asked.mean(tally)
    if asked:
        speak.talk(predicted(speeds(writer, path, chosen.slots, asked), asked))
        speak.talk(measured(tally))
    return 0


def _is_encoder(path: Path) -> bool:
    from narrows.infer import embedding

    return embedding.is_encoder(path)


def _encode(path: Path, place: Place, chosen: argparse.Namespace, limits: Limits) -> int:
    from narrows.infer import embedding
    from narrows.infer.server.run import serve_encoder

    encoder = embedding.load(path, chosen.checkpoint)
    speak.talk(f"{path}: an encoder, of {encoder.width} dimensions: /v1/embeddings alone")
    serve_encoder(encoder, place, chosen.queue, limits, speak.talk)
    return 0


def _api_key(chosen: argparse.Namespace) -> str | None:
    """From the one place where it is given; the environment counts last."""
    if chosen.api_key is not None and chosen.api_key_file is not None:
        raise BadInput("--api-key and --api-key-file are both given", hint="give one")
    source, key = "--api-key", chosen.api_key
    if chosen.api_key_file is not None:
        source = chosen.api_key_file
        key = folder.contents(source).strip()
    elif key is None and _KEY in os.environ:
        source, key = _KEY, os.environ[_KEY]
    if key == "":
        raise BadInput(f"{source} is empty", hint="leave it out, or give a secret")
    return key
