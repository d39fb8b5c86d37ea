"""The command `narrows`: finds the verb, runs it, and turns failures into messages and codes."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

from narrows import __version__
from narrows.cli import intent, speak
from narrows.cli.parser import Parser
from narrows.spec.errors import BadInput, NarrowsError, RunFailed

VERBS = (
    "probe", "doctor", "plan", "train", "tune", "launch", "generate", "chat", "serve", "evaluate",
    "export", "compress", "report",
)  # fmt: skip
EXAMPLES = """\
narrows probe                                       measure this machine, once
narrows plan --budget 5min --corpus shakespeare     what five minutes here can train
narrows train --budget 5min --corpus shakespeare    train it
narrows generate runs/shakespeare --prompt "ROMEO:" read what it writes
narrows report runs/shakespeare                     predicted beside measured, on a page"""
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit code: 0, or 2 for bad input, 3 for a job that
    does not fit, 1 for a run that failed, 130 when interrupted, 141 when the reader went away.
    """
    argv = sys.argv[1:] if argv is None else argv
    speak.accept_any_encoding()
    try:
        code = _run(argv)
        speak.flush()
        return code
    except BrokenPipeError:
        speak.silence()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        speak.talk("interrupted")
        return INTERRUPTED
    except (NarrowsError, OSError, MemoryError) as error:
        failure = error if isinstance(error, NarrowsError) else _told(error)
        if not failure.told:
            speak.error(failure, as_json="--json" in argv)
        return failure.exit_code


def parser(asked: str | None = None) -> Parser:
    """The whole command line, or where a verb is `asked` that one alone: to load and declare them
    all takes as long as a small search.
    """
    top = Parser(
        prog="narrows",
        examples=EXAMPLES,
        description="Plan, train and explain language models within the hardware one has.",
    )
    top.add_argument("--version", action="version", version=f"narrows {__version__}")
    # Without `prog` argparse formats a usage line, for which it loads all of shutil.
    verbs = top.add_subparsers(title="verbs", metavar="VERB", prog="narrows", parser_class=Parser)
    for name in [asked] if asked in VERBS else VERBS:
        verb = import_module(f"narrows.cli.{name}")
        below = verbs.add_parser(
            name, help=verb.SUMMARY, description=verb.SUMMARY, examples=verb.EXAMPLES
        )
        verb.arguments(below)
        below.add_argument("--json", action="store_true", help="answer with one line of JSON")
        below.set_defaults(act=verb.run, parser=below)
    return top


def _run(argv: list[str]) -> int:
    top = parser(argv[0] if argv else None)
    if not argv:
        speak.answer(top.format_help().rstrip())
        return 0
    arguments, unknown = top.parse_known_args(argv)
    if not hasattr(arguments, "act"):
        raise BadInput(f"no verb among: {' '.join(argv)}", hint="narrows --help")
    if unknown:
        arguments.parser.refuse(unknown[0])
    try:
        code: int = arguments.act(arguments)
    except NarrowsError as error:
        error.hint = intent.concrete(error.hint, arguments)
        raise
    return code


def _told(error: OSError | MemoryError) -> NarrowsError:
    """What the operating system refused, in words; a full disk or memory is a failed run."""
    if isinstance(error, MemoryError):
        return RunFailed("memory ran out", hint="narrows doctor")
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    what = where + reason[:1].lower() + reason[1:]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, or keep runs (--run) and NARROWS_HOME on another disk"
        return RunFailed(what, hint=hint)
    if isinstance(error, PermissionError):
        return BadInput(what, hint=f"check who may use it: ls -ld {error.filename or os.getcwd()}")
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return BadInput(what, hint="check the path")
    return RunFailed(what, hint="narrows doctor")


if __name__ == "__main__":
    sys.exit(main())
