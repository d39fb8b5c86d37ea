"""narrows compress: a model in fewer bits, and what that cost."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import folder, speak
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.adapt.method import Method
    from narrows.evaluate.compression import Receipt
    from narrows.evaluate.divergence import Divergence
    from narrows.evaluate.rates import Rate

SUMMARY = "Round a model to 8 or 4 bits, and measure what is lost and won."
EXAMPLES = """\
narrows compress runs/shakespeare --to q8_0 --text shakespeare --out shakespeare.gguf
narrows compress SmolLM2-135M --to q4_0 --method gptq --calibrate chats.jsonl --out SmolLM2.gguf
narrows compress SmolLM2-135M --to q4_1 --method awq --calibrate a.txt --text b.txt --out a.gguf
narrows compress SmolLM2-135M.Q8_0.gguf --to q4_0 --again --out SmolLM2-135M.Q4_0.gguf"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="MODEL", help="a run's folder, a published model's "
                        "or its name on the hub, or a GGUF file")  # fmt: skip
    parser.add_argument("--to", required=True, metavar="TYPE", help="q8_0, q4_1 or q4_0")
    parser.add_argument("-o", "--out", required=True, metavar="FILE.gguf", help="the new file; "
                        "its receipt lies beside it")  # fmt: skip
    parser.add_argument("--method", choices=["round", "gptq", "awq"], default="round",
                        help="gptq and awq look at what a text makes of it (round)")  # fmt: skip
    parser.add_argument("--calibrate", metavar="CORPUS", help="that text: shakespeare, python, "
                        "hf:NAME, a file or folder")  # fmt: skip
    parser.add_argument("--text", metavar="CORPUS", help="measure by it (default: the last tenth "
                        "of what is calibrated with, which is then left out there)")  # fmt: skip
    parser.add_argument("--field", default="text", help="of a row's text (text)")
    parser.add_argument("--again", action="store_true",
                        help="round what is packed already once more")  # fmt: skip
    parser.add_argument("--samples", type=int, default=64, metavar="N",
                        help="texts to calibrate with (64)")  # fmt: skip
    parser.add_argument("--held", type=int, default=16, metavar="N", help="to measure by (16)")
    parser.add_argument("--positions", type=int, metavar="N",
                        help="tokens of each (512, or the context)")  # fmt: skip
    parser.add_argument("--damping", type=float, default=0.01,
                        help="of gptq: share of the mean curvature added (0.01)")  # fmt: skip
    parser.add_argument("--in-order", action="store_true",
                        help="of gptq: columns as they lie, not by what matters")  # fmt: skip
    parser.add_argument("--checkpoint", help="best, latest or a step's folder (default best)")


def run(chosen: argparse.Namespace) -> int:
    """Compress, measure, and show the receipt."""
    for name in ("samples", "held", "positions"):
        least = 2 if name == "positions" else 1
        if (count := getattr(chosen, name)) is not None and count < least:
            raise BadInput(f"--{name} is {count}", hint=f"ask for at least {least}")
    path = folder.of_model(chosen.folder)
    from narrows.evaluate.compression import ENDING, Wanted, shrink

    to = Path(chosen.out).expanduser()
    wanted = Wanted(
        to, chosen.to, _method(chosen), chosen.calibrate, chosen.text, chosen.field, chosen.again,
        chosen.checkpoint, chosen.samples, chosen.held, chosen.positions,
    )  # fmt: skip
    receipt = shrink(path, wanted, talk=speak.talk)
    if chosen.json:
        speak.answer_json(receipt)
    else:
        speak.answer(_told(receipt))
    speak.talk(f"wrote {to} and {to.name}{ENDING}")
    speak.next_step(f'narrows generate {shlex.quote(str(to))} --prompt "..."')
    return 0


def _method(chosen: argparse.Namespace) -> Method:
    from narrows.adapt.method import AWQ, GPTQ, Round

    if chosen.method == "gptq":
        return GPTQ(damping=chosen.damping, ordered=not chosen.in_order)
    if chosen.in_order or chosen.damping != 0.01:
        what = f"--damping and --in-order are gptq's, and the method is {chosen.method}"
        raise BadInput(what, hint="--method gptq, or leave them out")
    return AWQ() if chosen.method == "awq" else Round()


def _told(receipt: Receipt) -> str:
    from narrows.spec.units import Bytes

    r = receipt
    twice = f", {r.again} of them packed before" if r.again else ""
    kept = f", {r.kept} taken as they lay" if r.kept else ""
    before, after, foretold = (
        Bytes(each).text() for each in (r.bytes_before, r.bytes, r.bytes_predicted)
    )
    lines = [
        f"{r.model} → {r.file}, {r.type}: {r.rounded} matrices rounded{twice}{kept}",
        f"{'':14}{'before':>14}{'after':>14}{'predicted':>14}",
        f"{'weights':14}{before:>14}{after:>14}{foretold:>14}",
        f"{'bits a weight':14}{r.bits_before:>14.2f}{r.bits:>14.2f}",
        *_rate_lines(r),
    ]
    if r.rate.joules_per_token and r.rate_before.joules_per_token:
        pair = r.rate_before.joules_per_token, r.rate.joules_per_token
        lines.append(f"{'J a token':14}{pair[0]:>14.3g}{pair[1]:>14.3g}")
    else:
        lines.append(f"{'J a token':14}  no meter can be read here")
    for what, each in (("", r.quality), ("as decoded here, activations in 8 bits", r.quality_here)):
        if each is not None:
            lines += _quality_lines(what or f"{each.tokens:,} tokens of {each.text}", each)
    return "\n".join(lines)


def _rate_lines(receipt: Receipt) -> list[str]:
    pair = receipt.rate_before, receipt.rate
    measured = "".join(f"{each.tokens_per_s:>14,.0f}" for each in pair)
    how = ", ".join(each.precision for each in pair)
    lines = [f"{'tokens/s':14}{measured}  in {how}; threads: {receipt.rate.threads}"]
    if foretold := "".join(_foretold(each) for each in pair).rstrip():
        lines.append(f"{'  predicted':14}{foretold}")
    return lines


def _foretold(rate: Rate) -> str:
    told = rate.tokens_per_s_predicted
    return " " * 14 if told is None else f"{told:>14,.0f}"


def _quality_lines(what: str, found: Divergence) -> list[str]:
    change = found.perplexity / found.perplexity_before - 1.0
    return [
        what,
        f"{'  perplexity':14}{found.perplexity_before:>14.4g}{found.perplexity:>14.4g}"
        f"{change:>+14.2%}",
        f"{'  KL':14}{found.kl_mean:>14.2g} mean, {found.kl_p99:.2g} at 99 %",
        f"{'  same first':14}{found.same:>14.2%}",
    ]
