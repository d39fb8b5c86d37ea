"""narrows chat: a conversation with a model, in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from narrows.cli import adapters, folder, guesses, precisions, speak, template
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.data.template import Message
    from narrows.infer.generate import Generation
    from narrows.infer.guessed import GuessedText

SUMMARY = "Talk with a model that knows conversations, tuned here or published."
EXAMPLES = """\
narrows chat SmolLM2-135M-Instruct.gguf                         a line is a message; ctrl-D ends
narrows chat runs/pirate --system "Be brief."
narrows chat runs/pirate --message "What is the capital of Peru?"   one answer, and done"""
HELP = """\
a line is a message; ctrl-C stops an answer, ctrl-D or /quit ends
/new           forget what was said
/system TEXT   what the model is to keep to from now on; nothing forgotten"""


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
    template.arguments(parser)
    adapters.one(parser)
    parser.add_argument("--checkpoint", help="best, latest or a step's folder (default best)")


def run(chosen: argparse.Namespace) -> int:
    """Answer each message as it comes; what was said before is remembered."""
    if chosen.json and chosen.message is None:
        raise BadInput("--json answers one message", hint='add --message "..."')
    path = folder.of_model(chosen.folder)
    from narrows.data.conversation import Conversation
    from narrows.infer.chat import answer, thinking
    from narrows.infer.ready import named
    from narrows.infer.reasoning import parted
    from narrows.infer.sampling import Sampling

    guessed, options = guesses.of(chosen), template.of(chosen)
    model = named(path, chosen.precision, speak.talk, chosen.checkpoint)
    generator = model.writer(
        cache=chosen.cache, adapters=adapters.of(chosen), talk=speak.talk
    )  # fmt: skip
    template.refuse_unread(generator.template, options)
    sampling = Sampling(
        temperature=chosen.temperature, top_p=chosen.top_p, seed=chosen.seed
    )  # fmt: skip
    messages: list[Message] = []
    _keep_to(chosen.system, messages)
    with guessed.guesser(generator, generator.spec.context) as guesser:
        before = guesser or generator.decoding(generator.spec.context)
        for message in _messages(chosen.message, messages):
            messages.append({"role": "user", "content": message})
            try:
                said = Conversation(messages, options=options)
                writing = answer(
                    generator, said, tokens=chosen.tokens, sampling=sampling, before=before
                )
            except BadInput as refusal:
                if chosen.message is not None or not sys.stdin.isatty():
                    raise
                speak.talk(str(refusal))
                messages.pop()
                continue
            whole = _said(writing, shown=not chosen.json)
            thought, text = parted(thinking(generator, said), whole)
            reasoned = {"reasoning_content": thought} if thought else {}
            messages.append({"role": "assistant", "content": text, **reasoned})
            if chosen.json:
                told = {"messages": messages, "tokens": writing.tokens, "finish": writing.finish}
                speak.answer_json(told)
                continue
            speak.piece("\n")
            if writing.guessed:
                speak.talk(writing.guessed)
    return 0


def _said(writing: Generation | GuessedText, *, shown: bool) -> str:
    """The answer, as far as whoever sits before the terminal lets it come."""
    pieces = []
    try:
        for piece in writing:
            pieces.append(piece)
            if shown:
                speak.piece(piece)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    return "".join(pieces)


def _messages(only: str | None, before: list[Message]) -> Iterator[str]:
    """What the user says: one message, or a line at a time until the input ends; what they say of
    the conversation is done to those `before`.
    """
    if only is not None:
        yield only
        return
    asks = sys.stdin.isatty()
    if asks:
        speak.talk("/help tells what can be said beside messages")
    while True:
        if asks:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        command, _, rest = line.strip().partition(" ")
        match command:
            case "/quit":
                return
            case "/help":
                speak.talk(HELP)
            case "/new":
                before[:] = [each for each in before if each["role"] == "system"]
            case "/system":
                _keep_to(rest.strip(), before)
            case _ if line.strip():
                yield line.strip()


def _keep_to(text: str | None, messages: list[Message]) -> None:
    """Have the model keep to this, or to nothing."""
    others = [each for each in messages if each["role"] != "system"]
    messages[:] = [{"role": "system", "content": text}, *others] if text else others
