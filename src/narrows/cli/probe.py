"""narrows probe: measure this machine."""

from __future__ import annotations

import argparse

from narrows.cli import speak
from narrows.spec.errors import BadInput

SUMMARY = "Measure this machine, once; later runs read what was found."
EXAMPLES = """\
narrows probe                      measure, or show what was measured
narrows probe --refresh            measure again
narrows probe -o machine.toml      keep a copy, to plan for this machine on another
narrows probe --link --processes 2  what processes here take to tell each other
narrows probe --link                under torchrun: processes on several hosts"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--refresh", action="store_true", help="measure again")
    parser.add_argument(
        "--link", action="store_true",
        help="measure what processes tell each other: N here, or those that torchrun started",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, metavar="N", help="how many --link starts here")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the machine here too")


def run(chosen: argparse.Namespace) -> int:
    """Probe, show, and keep a copy where one was asked for."""
    if chosen.link:
        return _link(chosen)
    if chosen.processes is not None:
        raise BadInput("--processes says nothing without --link", hint="narrows probe --link")
    from narrows.hardware.probe import probe
    from narrows.hardware.render import text

    machine = probe(talk=speak.talk, refresh=chosen.refresh)
    if chosen.output:
        from narrows.spec.record import save

        save(machine, chosen.output)
        speak.talk(f"wrote {chosen.output}")
    if chosen.json:
        speak.answer_json(machine)
    else:
        speak.answer(text(machine))
    speak.next_step("narrows plan --budget 5min --corpus shakespeare")
    return 0


def _link(chosen: argparse.Namespace) -> int:
    from narrows.hardware.link import fits, probe_link, text
    from narrows.spec.record import to_builtins
    from narrows.train.group import speaks

    if chosen.refresh or chosen.output:
        raise BadInput("--link is measured alone", hint="narrows probe --link, then narrows probe")
    link = probe_link(chosen.processes, talk=speak.talk if speaks() else lambda text: None)
    if not speaks():
        return 0
    if chosen.json:
        fitted = [to_builtins(each) for each in fits(link)]
        speak.answer_json({"link": to_builtins(link), "fits": fitted})
    else:
        speak.answer(text(link))
    speak.next_step(f"narrows plan job.toml --set layout.data={link.ranks}")
    return 0
