"""narrows chat: a conversation with a model, in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from narrows.cli import adapters, folder, guesses, precisions, speak
from narrows.spec.errors import BadInput

SUMMARY = "Talk with a model that knows conversations, tuned here or published."
EXAMPLES = """\
narrows chat SmolLM2-135M-Instruct.gguf                         a line is a message; ctrl-D ends
narrows chat runs/pirate --system "Be brief."
narrows chat runs/pirate --message "What is the capital of Peru?"   one answer, and done"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="MODEL", help="a run's folder, a published model's, or "
                        "a GGUF file")  # fmt: skip
    parser.add_argument("--message", help="say this, show the answer, and end")
    parser.add_argument("--system", help="what the model is to keep to")
    parser.add_argument("--tokens", type=int, default=512, help="an answer's most (default 512)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default 0.7)")
    parser.add_argument("--top-p", type=float, metavar="P", help="the likeliest with sum P alone")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same answers")
    precisions.arguments(parser)
    guesses.arguments(parser)
    adapters.one(parser)
    parser.add_argument("--checkpoint", help="best, latest or a step's folder (default best)")


def run(chosen: argparse.Namespace) -> int:
    """Answer each message as it comes; what was said before is remembered."""
    if chosen.json and chosen.message is None:
        raise BadInput("--json answers one message", hint='add --message "..."')
    path = folder.of_model(chosen.folder)
    from narrows.infer.chat import answer
    from narrows.infer.ready import named
    from narrows.infer.sampling import Sampling

    guessed = guesses.of(chosen)
    model = named(path, chosen.precision, speak.talk, chosen.checkpoint)
    generator = model.writer(
        cache=chosen.cache, adapters=adapters.of(chosen), talk=speak.talk
    )  # fmt: skip
    sampling = Sampling(
        temperature=chosen.temperature, top_p=chosen.top_p, seed=chosen.seed
    )  # fmt: skip
    messages = [{"role": "system", "content": chosen.system}] if chosen.system else []
    with guessed.guesser(generator, generator.spec.context) as guesser:
        for message in _messages(chosen.message):
            messages.append({"role": "user", "content": message})
            writing = answer(
                generator, messages, tokens=chosen.tokens, sampling=sampling, guesser=guesser
            )
            pieces = []
            for piece in writing:
                pieces.append(piece)
                if not chosen.json:
                    speak.piece(piece)
            messages.append({"role": "assistant", "content": "".join(pieces)})
            if chosen.json:
                said = {"messages": messages, "tokens": writing.tokens, "finish": writing.finish}
                speak.answer_json(said)
                continue
            speak.piece("\n")
            if writing.guessed:
                speak.talk(writing.guessed)
    return 0


def _messages(only: str | None) -> Iterator[str]:
    """What the user says: one message, or a line at a time until the input ends."""
    if only is not None:
        yield only
        return
    asks = sys.stdin.isatty()
    while True:
        if asks:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
