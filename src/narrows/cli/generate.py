"""narrows generate: text from a trained run."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import adapters, folder, guesses, precisions, speak
from narrows.cli.parser import given
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.infer.generate import Generation
    from narrows.infer.grammar import Grammar
    from narrows.infer.guessed import GuessedText

SUMMARY = "Write text with a model that was trained here or published."
EXAMPLES = """\
narrows generate runs/shakespeare --prompt "ROMEO:"
narrows generate runs/shakespeare --prompt "ROMEO:" --tokens 400 --temperature 0.7 --seed 3
narrows generate SmolLM2-135M.gguf --prompt "The capital of France is" --temperature 0
narrows generate runs/reviews --prompt "A fine film."       what a classifier says of it
narrows generate HuggingFaceTB/SmolLM2-135M-Instruct --prompt "The capital of France is"
narrows generate SmolLM2-135M.gguf --prompt "Ann, 30: " --json-schema person.json
narrows generate runs/shakespeare --prompt "Enter" --top-p 0.9 --stop "JULIET:\""""

_OF_WRITING = ("top_k", "top_p", "min_p", "stop", "json_schema", "regex", "grammar", "cache",
               "speculate", "draft")  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="MODEL", help="a run's folder, a published model's "
                        "or its name on the hub, or a GGUF file")  # fmt: skip
    parser.add_argument("--prompt", default="", help="the text to go on from")
    parser.add_argument("--tokens", type=int, default=200, help="at most so many (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="the K likeliest tokens alone")
    parser.add_argument("--top-p", type=float, metavar="P", help="the likeliest with sum P alone")
    parser.add_argument("--min-p", type=float, metavar="P", help="none below P × the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X",
                        help="divide the logits of what was said by X (default 1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same text")
    parser.add_argument("--stop", action="append", default=[], help="end before it; repeatable")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json-schema", metavar="FILE", help="JSON that fits the schema")
    forms.add_argument("--regex", help="a text that the regular expression fits throughout")
    forms.add_argument("--grammar", metavar="FILE", help="a text of a grammar in Lark's notation")
    precisions.arguments(parser)
    guesses.arguments(parser)
    adapters.one(parser)
    parser.add_argument("--checkpoint", help="best, latest or a step's folder (default best)")


def run(chosen: argparse.Namespace) -> int:
    """Stream the text, the prompt before it; with --json all at once."""
    path = folder.of_model(chosen.folder)
    from narrows.infer.account import Account, told
    from narrows.infer.generate import generate, tokens_of
    from narrows.infer.grammar import Grammars
    from narrows.infer.ready import named
    from narrows.infer.sampling import Sampling
    from narrows.spec.record import to_builtins

    model = named(path, chosen.precision, speak.talk, chosen.checkpoint)
    account = Account(path, by_torch=model.laid is None)
    if not model.laid and _tells(path):
        adapters.refuse_beside(path, "tells classes", chosen.adapter)
        return _classified(path, chosen)
    sampling = Sampling(
        temperature=chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p,
        min_p=chosen.min_p, repetition_penalty=chosen.repetition_penalty, seed=chosen.seed,
    )  # fmt: skip
    grammar, guessed = _grammar(chosen), guesses.of(chosen)
    generator = model.writer(
        cache=chosen.cache, adapters=adapters.of(chosen), talk=speak.talk
    )  # fmt: skip
    guide = None if grammar is None else Grammars(generator.tokenizer).guide(grammar)
    prompt = tokens_of(chosen.prompt, generator)
    writing: Generation | GuessedText
    with guessed.guesser(generator, len(prompt) + chosen.tokens) as guesser:
        if guesser:
            writing = guesser.write(
                prompt, chosen.tokens, sampling=sampling, stop=chosen.stop, guide=guide
            )
        else:
            writing = generate(
                generator, chosen.prompt, tokens=chosen.tokens, sampling=sampling,
                stop=chosen.stop, guide=guide,
            )  # fmt: skip
        began = time.perf_counter()
        text = _collect(writing) if chosen.json else _stream(chosen.prompt, writing)
        seconds = time.perf_counter() - began
    rate = f"{writing.tokens / seconds:,.0f} tokens/s"
    speak.talk(f"{writing.tokens} tokens in {seconds:.2f} s, {rate}, ended by: {writing.finish}")
    if writing.guessed:
        speak.talk(writing.guessed)
    predicted, measured = account.close(generator, writing)
    speak.talk(told(predicted, measured))
    if chosen.json:
        answer = {"prompt": chosen.prompt, "text": text, "tokens": writing.tokens}
        ledgers = {"predicted": predicted and to_builtins(predicted),
                   "measured": to_builtins(measured)}  # fmt: skip
        speak.answer_json({**answer, "seconds": seconds, "finish": writing.finish, **ledgers})
    talks = generator.template is not None
    speak.next_step(_after(path, "narrows chat {}" if talks else "narrows serve {}"))
    return 0


def _after(path: Path, published: str) -> str:
    """The command that usually follows: of a run its report, else one for what is published."""
    trained = (path / "plan.toml").is_file()
    return ("narrows report {}" if trained else published).format(shlex.quote(str(path)))


def _tells(path: Path) -> bool:
    from narrows.infer import classifier

    return classifier.is_one(path)


def _grammar(chosen: argparse.Namespace) -> Grammar | None:
    """What the text is held to."""
    from narrows.infer.grammar import Grammar

    if chosen.regex is not None:
        return Grammar(kind="regex", text=chosen.regex)
    if chosen.json_schema is not None:
        return Grammar(kind="schema", text=folder.contents(chosen.json_schema))
    if chosen.grammar is not None:
        return Grammar(kind="lark", text=folder.contents(chosen.grammar))
    return None


def _classified(path: Path, chosen: argparse.Namespace) -> int:
    """What a model that tells classes or a number says of the prompt."""
    from narrows.infer import classifier

    if option := given(chosen, _OF_WRITING):
        what = f"{option} is of writing, and {path} tells classes or a number"
        raise BadInput(what, hint="leave it out")
    said = classifier.load(path, chosen.checkpoint).answer(chosen.prompt)
    if chosen.json:
        speak.answer_json({"prompt": chosen.prompt, "said": [each._asdict() for each in said]})
    for each in () if chosen.json else said:
        of_class = each.label is not None
        speak.answer(f"{each.share:6.1%}  {each.label}" if of_class else f"{each.number:.4g}")
    speak.next_step(_after(path, "narrows evaluate {} --rows FILE.jsonl"))
    return 0


def _stream(prompt: str, pieces: Iterable[str]) -> str:
    speak.piece(prompt)
    for piece in pieces:
        speak.piece(piece)
    speak.piece("\n")
    return ""


def _collect(pieces: Iterable[str]) -> str:
    return "".join(pieces)
