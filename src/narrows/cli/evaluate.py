"""narrows evaluate: how good a model is, and whether another is better."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import folder, speak, template
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.evaluate.assessment import Assessment, Data, Manner

SUMMARY = "Measure a model: loss on texts, answers to questions, tasks of lm-evaluation-harness."
EXAMPLES = """\
narrows evaluate runs/shakespeare --text shakespeare --limit 40
narrows evaluate SmolLM2-135M.gguf --text hamlet.txt --context 1024 --stride 256
narrows evaluate SmolLM2-135M.gguf --rows questions.jsonl --tokens 8 --stop "\\n"
narrows evaluate runs/films --rows films.jsonl --against runs/films-2
narrows evaluate runs/tuned --against SmolLM2-135M.gguf --rows questions.jsonl --out tuned.json
narrows evaluate tuned.json --against earlier.json
narrows evaluate runs/a --against runs/a/checkpoints/step-00000100 --text shakespeare
narrows evaluate SmolLM2-135M.gguf --tasks hellaswag --limit 100"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a run's folder or a checkpoint in it, a "
                        "published model's folder, a GGUF file, or what --out wrote")  # fmt: skip
    parser.add_argument("--text", metavar="CORPUS", help="loss, perplexity and bits per byte of: "
                        "shakespeare, python, hf:NAME, a file or folder")  # fmt: skip
    parser.add_argument("--rows", metavar="FILE.jsonl", help="answers to lines of prompt or "
                        "messages, answer and, where one of several is right, choices; to "
                        "a classifier lines of text and label, or value")  # fmt: skip
    parser.add_argument("--tasks", metavar="NAME|FILE.yaml", help="a task of lm-evaluation-harness "
                        "(pip install 'narrows[harness]')")  # fmt: skip
    parser.add_argument("--against", metavar="MODEL", action="append", default=[],
                        help="another, asked the same: what differs; repeatable")  # fmt: skip
    parser.add_argument("-o", "--out", metavar="FILE.json", help="keep the result, item by item")
    parser.add_argument("--checkpoint", help="best, latest or a step's folder (default best)")
    parser.add_argument("--field", default="text", help="of a row's text, for --text (text)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N documents or rows")
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens read at once (the model's)"
    )
    parser.add_argument("--stride", type=int, metavar="N",
                        help="tokens a window moves on by (half the context)")  # fmt: skip
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer (default 64)")
    parser.add_argument("--stop", action="append", default=[], help="end before it; repeatable")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (the default)")
    parser.add_argument("--top-p", type=float, metavar="P", help="the likeliest with sum P alone")
    parser.add_argument("--joint", default=" ", metavar="TEXT", help="between a prompt and a "
                        "choice where neither has white space (default a space)")  # fmt: skip
    parser.add_argument("--shots", type=int, metavar="N", help="solved examples, for --tasks")
    parser.add_argument("--chat", action="store_true",
                        help="by the model's chat template, for --tasks")  # fmt: skip
    template.arguments(parser)
    parser.add_argument("--batch", type=int, default=8, help="read at once (8); changes no result")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32",
                        help="bf16 is quicker where the processor has it, and rounds")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of drawn answers and drawn items (0)")


def run(chosen: argparse.Namespace) -> int:
    """Evaluate, compare, and keep the result."""
    from msgspec.structs import replace

    from narrows.evaluate.comparison import compared
    from narrows.evaluate.told import answers, told
    from narrows.spec.record import save

    out = _out(chosen.out)
    first = _first(chosen)
    comparisons = []
    for other in chosen.against:
        second = _kept(other) or _assessed(other, first.data, first.manner, None)
        comparisons.append(compared(first, second))
    first = replace(first, comparisons=tuple(comparisons))
    if out:
        save(first, out)
    if said := answers(first):
        speak.talk(said)
    if chosen.json:
        speak.answer_json(first)
    else:
        speak.answer(told(first))
    if out:
        speak.talk(f"wrote {chosen.out}")
        speak.next_step(f"narrows evaluate {shlex.quote(chosen.out)} --against MODEL")
    else:
        speak.next_step(f'narrows generate {shlex.quote(first.model)} --prompt "..."')
    return 0


def _first(chosen: argparse.Namespace) -> Assessment:
    kept = _kept(chosen.model)
    if kept is None:
        return _assessed(chosen.model, _data(chosen), _manner(chosen), chosen.checkpoint)
    if chosen.text or chosen.rows or chosen.tasks:
        what = f"{chosen.model} is a result, and was asked what it was asked"
        raise BadInput(what, hint=f"narrows evaluate {chosen.model} --against MODEL")
    return kept


def _kept(path: str) -> Assessment | None:
    """A result that --out wrote, where the path is that of one."""
    if not path.endswith(".json"):
        return None
    from narrows.evaluate.assessment import Assessment
    from narrows.spec.record import load

    return load(Assessment, path)


def _assessed(model: str, data: Data, manner: Manner, checkpoint: str | None) -> Assessment:
    path = Path(model)
    if path.parent.name == "checkpoints" and checkpoint is None:
        path, checkpoint = path.parent.parent, path.name
    path = folder.of_model(str(path))
    from narrows.evaluate.assess import assess

    return assess(path, data, manner, checkpoint=checkpoint, talk=speak.talk)


def _data(chosen: argparse.Namespace) -> Data:
    from narrows.evaluate.assessment import Rows, Tasks, Texts

    given = [each for each in (chosen.text, chosen.rows, chosen.tasks) if each]
    if len(given) != 1:
        what = "nothing says what to ask" if not given else "one thing is asked at a time"
        raise BadInput(what, hint=f"narrows evaluate {chosen.model} --text shakespeare, or --rows "
                       "FILE.jsonl, or --tasks NAME")  # fmt: skip
    _refuse_unread(chosen)
    if chosen.text:
        return Texts(corpus=chosen.text, field=chosen.field)
    if chosen.rows:
        return Rows(file=chosen.rows, options=template.of(chosen))
    return Tasks(task=chosen.tasks, shots=chosen.shots, chat=chosen.chat)


def _refuse_unread(chosen: argparse.Namespace) -> None:
    """Raises BadInput for what is said of questions that are not asked."""
    of_rows, of_tasks = bool(chosen.rows), bool(chosen.tasks)
    for name, given, read, kind in (
        ("--template", chosen.template, of_rows, "--rows"),
        ("--shots", chosen.shots is not None, of_tasks, "--tasks"),
        ("--chat", chosen.chat, of_tasks, "--tasks"),
    ):
        if given and not read:
            what = f"{name} is read with {kind} alone, and would change nothing here"
            raise BadInput(what, hint=f"leave {name} out")


def _manner(chosen: argparse.Namespace) -> Manner:
    from narrows.evaluate.assessment import Manner
    from narrows.infer.sampling import Sampling

    stops = tuple(each.replace("\\n", "\n") for each in chosen.stop)
    return Manner(
        batch=chosen.batch, limit=chosen.limit, context=chosen.context, stride=chosen.stride,
        tokens=chosen.tokens, stop=stops, joint=chosen.joint, precision=chosen.precision,
        sampling=Sampling(
            temperature=chosen.temperature, top_p=chosen.top_p, seed=chosen.seed
        ),
        seed=chosen.seed,
    )  # fmt: skip


def _out(path: str | None) -> Path | None:
    if path is not None and not path.endswith(".json"):
        raise BadInput(f"--out {path} is no .json file", hint=f"--out {path}.json")
    return None if path is None else Path(path)
