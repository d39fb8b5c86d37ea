"""narrows export: a model as files that other programs read."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import adapters, folder, speak

if TYPE_CHECKING:
    from narrows.infer.export import Exported

SUMMARY = "Write a model as a Hugging Face folder or a GGUF file, and prove that it is the same."
EXAMPLES = """\
narrows export runs/shakespeare --to shakespeare-hf
narrows export runs/shakespeare --to shakespeare.gguf --type q8_0
narrows export SmolLM2-135M.gguf --to SmolLM2-135M --type bf16
narrows export runs/lora --to lora --adapter-only     what PEFT calls an adapter
narrows export SmolLM2-135M --adapter lora --to tuned  one of PEFT's, merged"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="MODEL", help="a run's folder, a published model's "
                        "or its name on the hub, or a GGUF file")  # fmt: skip
    parser.add_argument("--to", required=True, metavar="PATH",
                        help="a new folder, or a file that ends in .gguf")  # fmt: skip
    parser.add_argument("--type", help="f32, f16 or bf16; in GGUF also q8_0, q4_1 and q4_0 "
                        "(default the weights' own, f32 where they are packed)")  # fmt: skip
    parser.add_argument("--checkpoint", help="best, latest or a step's folder (default best)")
    parser.add_argument("--adapter", metavar="FOLDER",
                        help="one of PEFT's, to be merged into a published model")  # fmt: skip
    parser.add_argument(
        "--adapter-only",
        action="store_true",
        help="of a run with low-rank products these alone, as PEFT has them",
    )
    parser.add_argument("--reference", action="store_true", help="refuse unless the format's own "
                        "reader compares, too (transformers; gguf)")  # fmt: skip


def run(chosen: argparse.Namespace) -> int:
    """Write, compare, and show what the comparison gave."""
    path, to = folder.of_model(chosen.folder), Path(chosen.to).expanduser()
    if chosen.adapter_only:
        return _alone(chosen, to)
    from narrows.infer.export import export, export_source

    if chosen.adapter is not None:
        from narrows.infer.adapters import merged

        given = merged(path, adapters.folder_of(chosen.adapter))
        done = export_source(
            given, to, type=chosen.type, reference=chosen.reference, talk=speak.talk, beside=path
        )
    else:
        done = export(
            path, to, type=chosen.type, checkpoint=chosen.checkpoint, reference=chosen.reference,
            talk=speak.talk,
        )  # fmt: skip
    if chosen.json:
        answer = {"path": str(done.path), "type": done.type, "bytes": done.bytes}
        speak.answer_json({**answer, **done.parity._asdict()})
    else:
        speak.answer(_told(done))
    if done.parity.perplexity is not None:
        speak.next_step(f'narrows generate {shlex.quote(str(done.path))} --prompt "..."')
    return 0


def _alone(chosen: argparse.Namespace, to: Path) -> int:
    from narrows.infer.adapters import write

    run = folder.existing(chosen.folder)
    what = write(run, to, chosen.checkpoint)
    if chosen.json:
        speak.answer_json({"path": str(to), "what": what})
    else:
        speak.answer(f"{what} → {to}")
    start = folder.plan_of(run).start
    assert start is not None
    beside = shlex.join(["narrows", "generate", start.path, "--adapter", str(to)])
    speak.next_step(f'{beside} --prompt "..."')
    return 0


def _told(done: Exported) -> str:
    from narrows.spec.units import Bytes

    found = done.parity
    lines = [f"{done.what} → {done.path}, {done.type}, {Bytes(done.bytes).text()}",
             f"  read by     {' and '.join(found.readers)}"]  # fmt: skip
    texts = f"equal, {found.tokens} of {found.texts} texts" if found.texts else "no tokenizer"
    lines.append(f"  tokens      {texts}")
    lines.append(f"  template    {'equal' if found.template else 'none'}")
    between = found.difference_readers
    what = "logits" if found.perplexity is not None else "outputs"
    lines.append(f"  {what:12}{found.difference:.1e} apart at most, of {found.largest:.3g}"
                 + (f"; {between:.1e} between readers" if between is not None else ""))  # fmt: skip
    if found.perplexity is not None:
        before, after = found.perplexity
        change = "" if math.isinf(before) else f" ({after / before - 1:+.2%})"
        lines.append(f"  perplexity  {before:.4g} before, {after:.4g} after{change}")
    return "\n".join(lines)
