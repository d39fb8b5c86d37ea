"""What somebody wants to serve on machines that they do not have, read from the arguments."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.cli import fleet, speak
from narrows.cli.parser import given
from narrows.spec.errors import BadInput

if TYPE_CHECKING:
    from narrows.plan.fleet.ways import Demand
    from narrows.spec.fleet import Fleet
    from narrows.spec.model import ModelSpec
    from narrows.spec.service import EngineName, Guesses, Limits, Requests, Service

_PROMPT, _ANSWER = 1024, 256
_AHEAD = 4
_ACCEPT = 0.7
"""Of a draft's guesses, those that are right: 0.6 to 0.8 in arXiv:2211.17192, table 3."""
_BITS = {16: 16.0, 8: 8.0, 4: 4.5}
"""With the scales that go with weights of 4 bits."""
_TIMES_LARGER = (2, 4, 8)
_PADDING = 1024
"""Rows that a table may have beyond the tokens, which differ within a family."""
OWN = ("prompt", "answer", "vary", "shared_prefix", "chunk", "draft", "accept", "ahead", "weights",
       "engine", "first_token", "per_token", "percentile")  # fmt: skip
"""Options that nothing but serving has."""
_VARY = 0.5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of serving."""
    parser.add_argument("--serve", type=int, metavar="N",
                        help="serve N requests at a time instead of training")  # fmt: skip
    parser.add_argument("--rate", metavar="RATE",
                        help='or as many as come, such as "5 requests/s"')  # fmt: skip
    parser.add_argument("--prompt", type=int, metavar="N",
                        help="tokens of a request (1024, or what the context leaves)")  # fmt: skip
    parser.add_argument("--answer", type=int, metavar="N",
                        help="tokens of an answer (256, or half of the context)")  # fmt: skip
    parser.add_argument("--vary", type=float, metavar="SHARE",
                        help="deviation of the lengths, a share of their mean (0.5)")  # fmt: skip
    parser.add_argument("--shared-prefix", type=int, metavar="N",
                        help="tokens that all prompts begin with, kept")  # fmt: skip
    parser.add_argument("--chunk", type=int, metavar="N",
                        help="tokens of a prompt that one step computes")  # fmt: skip
    parser.add_argument("--draft", metavar="NAME", help="a smaller model that guesses ahead")
    parser.add_argument("--accept", type=float, metavar="SHARE", help="guesses that are right")
    parser.add_argument("--ahead", type=int, metavar="N", help="tokens guessed for each step")
    parser.add_argument("--weights", type=int, choices=(16, 8, 4), help="bits of a weight")
    parser.add_argument("--engine", choices=("narrows", "vllm", "trtllm", "sglang", "bare"),
                        help="what serves (narrows here, else vllm; bare: no server)")  # fmt: skip
    parser.add_argument("--first-token", metavar="TIME", help='at the latest, such as "500 ms"')
    parser.add_argument("--per-token", metavar="TIME", help='at the latest, such as "50 ms"')
    parser.add_argument("--percentile", type=int, choices=(50, 90, 99),
                        help="of 100 requests, those that the two must hold for (90)")  # fmt: skip


def is_asked(chosen: argparse.Namespace) -> bool:
    """Whether a model is to be served rather than trained; raises BadInput where only how is
    said.
    """
    if chosen.serve is not None or chosen.rate is not None:
        return True
    if option := given(chosen, OWN):
        raise BadInput(
            f"{option} is of serving, and nothing says how many requests come",
            hint='--serve 8 for so many at a time, or --rate "5 requests/s"',
        )
    return False


def answer(chosen: argparse.Namespace) -> tuple[Service, str]:
    """The best way to serve, as a record and as text; as a page where one is asked for."""
    from narrows.plan.fleet.service import service
    from narrows.plan.fleet.service_render import text

    found = service(demand(chosen))
    if chosen.page:
        from narrows.report import served

        served.write(found, Path(chosen.page))
        speak.talk(f"wrote {chosen.page}")
    return found, text(found)


def command(found: Service) -> str | None:
    """What serves as was planned, where that is this machine."""
    if found.engine != "narrows":
        return None
    precision = {16.0: "bf16", 8.0: "int8", 4.5: "int4"}[found.best.placement.weight_bits]
    options = f"--slots {max(1, round(found.best.concurrency))} --precision {precision}"
    if Path(found.model_name).exists():
        return f"narrows serve {shlex.quote(found.model_name)} {options}"
    return (
        f"narrows serve MODEL {options}   "
        f"({found.model_name}: its folder, GGUF file, or name on the hub)"
    )


def demand(chosen: argparse.Namespace) -> Demand:
    """The arguments as something to serve; raises BadInput where they contradict each other."""
    from narrows.hardware.fleet import ladder
    from narrows.plan.fleet.ways import Demand

    others = ("budget", "overrides", "against", "tune", "region", "pue", "trace", "batch")
    if option := given(chosen, others):
        raise BadInput(f"{option} says nothing of serving", hint="leave it or --serve out")
    if chosen.goal is not None:
        raise BadInput(
            f"--goal {chosen.goal} is of training: served is what most tokens come of",
            hint="leave it out; --first-token and --per-token say how quick it must be",
        )
    if not chosen.model:
        raise BadInput("nothing says which model is served", hint="--model llama-3.1-8b")
    fleet.refuse_what_is_of_a_job(chosen)
    known, spec = fleet.named(chosen.machine), fleet.model(chosen.model, chosen.context)
    if not spec.causal:
        raise BadInput(
            f"{chosen.model} reads text and writes none",
            hint="a causal model, such as llama-3.1-8b",
        )
    if chosen.weights == 16 and not known.floating:
        raise BadInput(f"{known.accelerator} computes integers alone", hint="--weights 8, or 4")
    _settle_lengths(chosen, spec)
    draft = fleet.model(chosen.draft, None) if chosen.draft else None
    if draft is not None:
        _refuse_draft(draft, spec, chosen)
    return Demand(
        name=chosen.model, model=spec, fleet=known, requests=_requests(chosen),
        limits=_limits(chosen), guesses=_guesses(chosen), larger=_larger(known),
        smaller=next((f for f in ladder(known) if 2 * f.devices == known.devices), None),
        draft=draft, engine=_engine(chosen, known),
        weight_bits=_BITS.get(chosen.weights),
    )  # fmt: skip


def _engine(chosen: argparse.Namespace, fleet: Fleet) -> EngineName:
    """Raises BadInput where the engine does not run on the fleet."""
    here = fleet.machine is not None
    engine: EngineName = chosen.engine or ("narrows" if here else "vllm")
    if engine == "narrows" and not here:
        raise BadInput(
            f"narrows serves on the machine that it runs on, not on {fleet.name}",
            hint="--machine here, or another engine, such as --engine vllm",
        )
    return engine


def _refuse_draft(draft: ModelSpec, model: ModelSpec, chosen: argparse.Namespace) -> None:
    """Raises BadInput where its guesses save nothing, or are of other tokens."""
    if draft.parameters >= model.parameters:
        raise BadInput(
            f"the draft {chosen.draft} is no smaller than {chosen.model}",
            hint="a model that guesses is quick only where it has far fewer parameters",
        )
    if abs(draft.vocabulary - model.vocabulary) > _PADDING:
        raise BadInput(
            f"the draft {chosen.draft} knows {draft.vocabulary:,} tokens, and {chosen.model} "
            f"{model.vocabulary:,}: what one guesses the other cannot check",
            hint="a smaller model of the same family, which cuts text alike",
        )


def _requests(chosen: argparse.Namespace) -> Requests:
    from narrows.spec.service import Requests
    from narrows.spec.units import RequestsPerSecond

    if chosen.serve is not None and chosen.rate is not None:
        raise BadInput("--serve and --rate both say how many come", hint="leave one of them out")
    for name in ("serve", "prompt", "answer", "chunk"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            raise BadInput(f"--{name} is {getattr(chosen, name)}", hint="use at least 1")
    shared = chosen.shared_prefix or 0
    if not 0 <= shared < chosen.prompt:
        raise BadInput(
            f"--shared-prefix is {shared} of a prompt of {chosen.prompt} tokens",
            hint="use fewer than --prompt",
        )
    vary = _VARY if chosen.vary is None else chosen.vary
    if not 0.0 <= vary <= 3.0:
        raise BadInput(f"--vary is {vary:g}", hint="use 0 (all alike) to 3")
    rate = None if chosen.rate is None else float(RequestsPerSecond.parse(chosen.rate))
    if rate is not None and rate <= 0.0:
        raise BadInput(f"--rate is {chosen.rate}", hint='such as "5 requests/s"')
    return Requests(
        prompt=chosen.prompt, answer=chosen.answer, concurrency=chosen.serve, rate=rate,
        shared=shared, chunk=chosen.chunk, variation=vary,
    )  # fmt: skip


def _settle_lengths(chosen: argparse.Namespace, model: ModelSpec) -> None:
    """A prompt and its answer lie within the model's context, or a longer one that was given."""
    from narrows.spec.model import Learned

    longest = fleet.longest(chosen.model) if chosen.context is None else chosen.context
    if chosen.answer is None:
        chosen.answer = max(1, min(_ANSWER, longest // 2))
    if chosen.prompt is None:
        chosen.prompt = max(1, min(_PROMPT, longest - chosen.answer))
    tokens = chosen.prompt + chosen.answer
    if tokens > longest:
        longer = f", or --context {tokens} where the model was stretched to it"
        stretched = "" if isinstance(model.positions, Learned) else longer
        raise BadInput(
            f"a prompt of {chosen.prompt:,} tokens and an answer of {chosen.answer:,} are more "
            f"than the context of {longest:,} of {chosen.model}",
            hint=f"shorter ones{stretched}",
        )


def _limits(chosen: argparse.Namespace) -> Limits:
    from narrows.spec.service import Limits
    from narrows.spec.units import Seconds

    def latest(option: str, given: str | None) -> float | None:
        if given is None:
            return None
        seconds = float(Seconds.parse(given))
        if seconds <= 0.0:
            raise BadInput(f"{option} is {given}", hint='a time from the request, such as "500 ms"')
        return seconds

    return Limits(
        first_token_s=latest("--first-token", chosen.first_token),
        per_token_s=latest("--per-token", chosen.per_token), percent=chosen.percentile or 90,
    )  # fmt: skip


def _guesses(chosen: argparse.Namespace) -> Guesses | None:
    from narrows.plan.fleet.serving import Speculation
    from narrows.spec.service import Guesses

    if (chosen.draft, chosen.accept, chosen.ahead) == (None, None, None):
        return None
    accept = _ACCEPT if chosen.accept is None else chosen.accept
    ahead = _AHEAD if chosen.ahead is None else chosen.ahead
    if not 0.0 <= accept <= 1.0:
        raise BadInput(f"--accept is {accept:g}", hint="a share of the guesses, such as 0.7")
    if not 1 <= ahead <= 64:
        raise BadInput(f"--ahead is {ahead}", hint="use 1 to 64")
    tokens = Speculation(accept=accept, ahead=ahead).tokens
    return Guesses(accept=accept, ahead=ahead, tokens=tokens, draft=chosen.draft)


def _larger(fleet: Fleet) -> tuple[Fleet, ...]:
    """More of the same devices in one node, then more of such nodes."""
    from narrows.hardware.fleet import fleet as named
    from narrows.spec.fleet import counted

    nodes, devices, what = counted(fleet.name)
    if devices is None:
        nodes, devices = 1, nodes or 1
    found = []
    for times in _TIMES_LARGER:
        inside = min(devices * times, max(8, devices))
        outside = (nodes or 1) * max(1, devices * times // inside)
        name = f"{outside}x{inside}x{what}" if outside > 1 else f"{inside}x{what}"
        try:
            found.append(named(name))
        except BadInput:
            break
    return tuple(found)
