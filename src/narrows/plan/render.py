"""A plan as text for the terminal: what will run, why, how long, what it costs, what holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from narrows.plan.explain import described
from narrows.plan.trained import Trained
from narrows.plan.words import count, model_line, optimizer_line
from narrows.spec.adapter import LowRank
from narrows.spec.exchange import Bf16, GradientExchange, LocalSteps, PowerSGD
from narrows.spec.ledger import Ledger
from narrows.spec.plan import Plan
from narrows.spec.units import Bytes, FlopPerSecond, Joules, Seconds, Tokens, Watts

_WIDTH = 96
_SHARE_LEAST = 0.005


def text(plan: Plan) -> str:
    """The whole answer, in blocks parted by blank lines."""
    blocks = (
        _what(plan), _predicted(plan), _step(plan.predicted), _doubling(plan), _offers(plan),
        _others(plan), _whys(plan),
    )  # fmt: skip
    told = ("\n".join(block) for block in blocks)
    return "\n\n".join(block for block in told if block)


def _what(plan: Plan) -> Iterator[str]:
    optimizer, schedule = plan.optimizer, plan.schedule
    tokens = plan.steps * plan.step_tokens
    epochs = f", {tokens / plan.data.tokens_train:.1f} epochs" if plan.data else ""
    yield f"plan for {plan.name} on {plan.made_from.machine_name}"
    yield from _row("model", model_line(plan.model))
    yield from _row(
        "training",
        f"{plan.steps} steps of {plan.batch_sequences} x {plan.context} tokens = "
        f"{Tokens(tokens).text()}{epochs}; {optimizer_line(optimizer)}, "
        f"{schedule.warmup_steps} steps of warm-up, {schedule.shape}{_ramped(plan)}"
        f"{_exchanged(plan.exchange)}",
    )
    if not plan.learning.everything:
        yield from _row("what learns", _learning(plan))
    yield from _row("layout", f"{described(plan.layout)}, {plan.layout.threads} threads")
    yield from _row(
        "along the way",
        f"evaluation of {plan.evaluation.sequences} sequences each {plan.evaluation.every} steps, "
        f"checkpoint each {plan.checkpoints.every}",
    )


def _learning(plan: Plan) -> str:
    parameters, adapter = Trained(plan.model, plan.learning).parameters, plan.adapter
    learned = sum(each.size for each in parameters if each.learns)
    what = f"{count(learned)} of {count(sum(each.size for each in parameters))} parameters"
    if isinstance(adapter, LowRank):
        what += (
            f": {adapter.rule} of rank {adapter.ranks} beside {', '.join(adapter.targets or ())}"
        )
        what += f"; frozen matrices in {adapter.base}" if adapter.base else ""
    elif adapter is not None:
        what += ": biases"
    return what + (f"; frozen: {', '.join(plan.frozen)}" if plan.frozen else "")


def _ramped(plan: Plan) -> str:
    if plan.batch_ramp is None:
        return ""
    times = plan.batch_ramp.times_most(plan.batch_sequences)
    fewest = -(-plan.steps // times)
    return (
        f"; {plan.batch_sequences} to {plan.batch_sequences * times} sequences an update by the "
        f"gradients' noise, {fewest} to {plan.steps} updates"
    )


def _exchanged(exchange: GradientExchange) -> str:
    match exchange:
        case Bf16():
            return "; gradients added up in bf16"
        case PowerSGD():
            return (
                f"; gradients by PowerSGD of rank {exchange.rank} from step {exchange.start_step}"
            )
        case LocalSteps():
            return f"; ranks train apart and meet each {exchange.every} steps"
    return ""


def _predicted(plan: Plan) -> Iterator[str]:
    ledger = plan.predicted
    total = ledger.total
    yield f"predicted (from curves of {plan.made_from.machine_name}; energy {ledger.energy_basis})"
    yield from _row(
        "step",
        f"{_seconds(ledger.step_seconds)}, {ledger.tokens_per_s:,.0f} tokens/s, "
        f"{ledger.mfu:.0%} of {FlopPerSecond(plan.peak_flop_per_s).text()}",
    )
    yield from _row(
        "total",
        f"{_duration(total.seconds)}: start {_seconds(total.seconds_start)}, "
        f"training {_seconds(total.seconds_training)}, "
        f"evaluating {_seconds(total.seconds_evaluating)}, "
        f"saving {_seconds(total.seconds_saving)}",
    )
    yield from _row("memory", _memory(ledger))
    yield from _row(
        "energy",
        f"{Joules(total.joules).text()} at {Watts(plan.power_watts).text()}, "
        f"${total.dollars:.2g}, {total.carbon_grams:.2g} g of CO2"
        if plan.power_watts
        else f"power not known; ${total.dollars:.2g}",
    )


def _memory(ledger: Ledger) -> str:
    memory = msgspec.structs.asdict(ledger.memory)
    peak = memory.pop("peak")
    kinds = sorted(((value, name) for name, value in memory.items() if value), reverse=True)
    parts = ", ".join(f"{name} {Bytes(value).text()}" for value, name in kinds)
    return f"{Bytes(peak).text()}: {parts}"


def _step(ledger: Ledger) -> Iterator[str]:
    yield "where a step goes"
    for kind, seconds in sorted(ledger.seconds_by_kind().items(), key=lambda item: -item[1]):
        share = seconds / ledger.step_seconds
        if share < _SHARE_LEAST:
            continue
        rows = [row for row in ledger.rows if row.kind == kind]
        flop = sum(row.flop for row in rows)
        rate = f", {FlopPerSecond(flop / seconds).text()}" if flop else ""
        names: dict[str, float] = {}
        for row in rows:
            names[row.operation] = names.get(row.operation, 0.0) + row.seconds
        largest = sorted(names, key=lambda name: -names[name])[:4]
        yield from _row(kind, f"{share:4.0%}  {_seconds(seconds)}{rate}: {', '.join(largest)}")


def _doubling(plan: Plan) -> Iterator[str]:
    yield f"bottleneck: {plan.bottleneck}; a step with twice the"
    for row in plan.doubling:
        said = f"-{row.saving:.0%}  {_seconds(row.step_seconds)}"
        yield from _row(row.resource, said if row.saving >= _SHARE_LEAST else "no shorter")


def _offers(plan: Plan) -> Iterator[str]:
    """Nothing where the link is no bottleneck."""
    if plan.offers:
        yield "[train.exchange] tells others less, at a cost to what is learned (docs/exchange.md)"
    for offer in plan.offers:
        told = ", ".join(
            f"{name} = {value}" for name, value in msgspec.structs.asdict(offer.exchange).items()
            if name in ("rank", "every")
        )  # fmt: skip
        kind = f'type = "{offer.exchange.__struct_config__.tag}"'
        said = f"-{offer.saving:.0%}  {_seconds(offer.step_seconds)}"
        yield from _row(", ".join(filter(None, [kind, told])), said, 38)


def _others(plan: Plan) -> Iterator[str]:
    yield "runner-up layouts"
    for other in plan.alternatives:
        yield f"  {described(other.layout)}"
        yield (
            f"    {_seconds(other.step_seconds)} a step, {Bytes(other.memory_peak).text()}, "
            f"{_duration(other.total_seconds)} in all: {other.verdict}"
        )
    if not plan.alternatives:
        yield "  none: the job leaves no choice"


def _whys(plan: Plan) -> Iterator[str]:
    yield "why"
    for key, reason in plan.why.items():
        yield from _row(key, reason, 30)


def _row(label: str, content: str, column: int = 20) -> Iterator[str]:
    """A label and its content, wrapped under itself."""
    lines = list(_wrapped(content.split(" "), _WIDTH - column))
    yield f"  {label:<{column - 2}}{lines[0]}"
    for line in lines[1:]:
        yield " " * column + line


def _wrapped(words: Iterable[str], width: int) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _seconds(value: float) -> str:
    return Seconds(value).text()


def _duration(value: float) -> str:
    """Minutes and hours as people say them."""
    if value < 100:
        return _seconds(value)
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
