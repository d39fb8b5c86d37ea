"""A forecast as text for the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from narrows.plan.words import count, devices, dollars, model_line
from narrows.spec.fleet import Spread, counted
from narrows.spec.forecast import Dial, Elsewhere, Evidence, Forecast, Moment, Option, Run, Sizing
from narrows.spec.units import Bytes, FlopPerSecond, Grams, Joules, Seconds, Tokens, Watts

_SHARE_LEAST = 0.002
_WIDTH = 100
_MOMENTS: dict[Moment, str] = {
    "first stage": "on the first stage, its forwards in flight",
    "middle stage": "on the second stage, its forwards in flight",
    "loss": "at the loss",
}


def text(forecast: Forecast) -> str:
    """The whole answer, in blocks parted by blank lines."""
    blocks = (
        _what(forecast), _predicted(forecast), _dial(forecast.dial), _step(forecast),
        _memory(forecast),
        _doubling(forecast), _options("runner-up layouts", forecast.runners_up),
        _options("one technique changed", forecast.techniques, structure=False),
        _options("fastest for its memory", forecast.front),
        _elsewhere(forecast), _scaling(forecast),
        _evidence("how this is known", forecast.answers), _evidence("from", forecast.facts),
    )  # fmt: skip
    lines = ([line for long in block for line in wrapped(long)] for block in blocks)
    return "\n\n".join("\n".join(block) for block in lines if block)


def wrapped(line: str) -> list[str]:
    """A line, broken under its content where it is too long for a terminal."""
    label = re.match(r" +\w+ {2,}", line)
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=" " * (label.end() if label else 4),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def described(spread: Spread) -> str:
    """A layout in one line."""
    copies = f" x {spread.replicas} copies" if spread.replicas > 1 else ""
    words = [f"data {spread.data}{copies}"]
    for name in ("tensor", "pipeline", "context", "expert"):
        if (size := getattr(spread, name)) > 1:
            words.append(f"{name} {size}")
    if spread.interleave > 1:
        words.append(f"{spread.interleave} pieces a stage")
    words.append(f"micro-batch {spread.micro_batch} x {spread.accumulation}")
    words.append(f"{spread.sharding} sharded" if spread.sharding != "none" else "nothing sharded")
    words += [_choice(name, value) for name, value in spread.unusual.items()]
    if spread.trained < 1.0:
        words.append(f"{spread.trained:.2%} of the weights trained")
    if not spread.logits:
        words.append("a head of classes alone")
    elif spread.reached < 1.0:
        words.append(f"{spread.reached:.0%} of the layers reached")
    if spread.stored_bits is not None:
        words.append(f"the rest in {spread.stored_bits:g} bits")
    return ", ".join(words)


def _choice(name: str, value: object) -> str:
    word = name.replace("_", " ")
    if isinstance(value, bool):
        return word if value else f"no {word}"
    if isinstance(value, int):
        return f"{word} {value}"
    return f"{word} {value}".replace("_", " ")


def _what(forecast: Forecast) -> Iterator[str]:
    fleet = forecast.fleet
    yield f"{forecast.model_name} on {devices(fleet)}"
    yield f"  model    {model_line(forecast.model)}"
    tokens = forecast.batch_sequences * forecast.positions
    yield (
        f"  step     {forecast.batch_sequences:,} sequences of {forecast.positions:,} = "
        f"{Tokens(tokens).text()}, {forecast.spread.precision}"
    )
    yield f"  layout   {described(forecast.spread)}"
    yield (
        f"           best for {forecast.goal} of {forecast.layouts_evaluated:,} layouts, of which "
        f"{forecast.layouts_fitting:,} fit"
    )


def _predicted(forecast: Forecast) -> Iterator[str]:
    ledger, fleet = forecast.predicted, forecast.fleet
    rate = ledger.tokens_per_s
    yield f"predicted (what devices reach: {fleet.reach.source})"
    yield (
        f"  step     {Seconds(ledger.step_seconds).text()}, {rate:,.0f} tokens/s, "
        f"{rate / fleet.devices:,.0f} a device; "
        f"{FlopPerSecond(forecast.flop_per_s_device).text()} of model work, "
        f"{ledger.mfu:.0%} of the peak"
    )
    if watts := ledger.watts:
        yield f"  power    {Watts(watts).text()}, {Watts(watts / fleet.devices).text()} a device"
    good = forecast.goodput
    yield (
        f"  failures one in {Seconds(good.mean_time_between_failures_s).text()}; a checkpoint of "
        f"{Seconds(good.checkpoint_seconds).text()} each "
        f"{Seconds(good.checkpoint_interval_s).text()} leaves {good.share:.1%} of the time"
    )
    if forecast.run is not None:
        yield f"  total    {_run(forecast.run)}"
    elif forecast.tokens is not None:
        yield "  total    never: failures leave no time to train"


def _run(run: Run) -> str:
    told = [Seconds(run.seconds).text()]
    if run.joules is not None:
        told.append(Joules(run.joules).text())
    if run.dollars is not None:
        told.append(dollars(run.dollars))
    if run.carbon_grams is not None:
        told.append(f"{Grams(run.carbon_grams).text()} of CO2")
    return f"{Tokens(run.tokens).text()} in {run.steps:,} steps: {', '.join(told)}"


def _dial(dial: Dial | None) -> Iterator[str]:
    if dial is None:
        return
    binding, *others = dial.limits
    yield f"the budget: {binding.bound}"
    yield f"  buys     {Tokens(dial.tokens).text()}"
    for each in others:
        yield f"           {each.bound} would buy {Tokens(each.tokens).text()}"
    if dial.sizing is not None:
        yield from _sizing(dial.sizing)
    told = f"  loss     compute-optimal for this size: {Tokens(dial.tokens_optimal).text()}"
    if dial.loss is not None:
        told = f"  loss     {dial.loss:.3g} by the law, of its own text and tokenizer;" + told[10:]
    yield told


def _sizing(sizing: Sizing) -> Iterator[str]:
    if sizing.twice_parameters is None or sizing.twice_tokens is None:
        yield f"  size     of {sizing.sizes}, the one that these tokens are compute-optimal for"
        return
    yield (
        f"  size     the lowest loss by the law of {sizing.sizes}, each at the throughput of its "
        "own best layout (arXiv:2404.10102)" + ("; the next does not fit" if sizing.largest else "")
    )
    yield (
        f"           twice as much would make it {count(sizing.twice_parameters)} parameters on "
        f"{Tokens(sizing.twice_tokens).text()}"
    )


def _step(forecast: Forecast) -> Iterator[str]:
    ledger = forecast.predicted
    yield "where a step goes"
    for part, seconds in ledger.seconds_by_part().items():
        share = seconds / ledger.step_seconds
        if share >= _SHARE_LEAST:
            yield f"  {part:30}{share:6.1%}  {Seconds(seconds).text()}"


def _memory(forecast: Forecast) -> Iterator[str]:
    peak = forecast.predicted.memory
    limit = Bytes(forecast.memory_limit).text()
    when = _MOMENTS[forecast.peak_at]
    if forecast.peak_at == "loss" and forecast.spread.pipeline > 1:
        when = f"on the stage of the head, {when}"
    yield f"memory of the fullest device: {Bytes(peak.peak).text()} of {limit}, {when}"
    for name, value in peak.ranked():
        if value > 0.01 * peak.peak:
            yield f"  {name:30}{value / peak.peak:6.1%}  {Bytes(value).text()}"


def _doubling(forecast: Forecast) -> Iterator[str]:
    yield f"bottleneck: {forecast.bottleneck}; a step with twice the"
    for row in forecast.doubling:
        told = f"-{row.saving:.1%}  {Seconds(row.step_seconds).text()}"
        yield f"  {row.resource:30}{told if row.saving >= 0.0005 else 'no shorter'}"


def _options(title: str, options: tuple[Option, ...], *, structure: bool = True) -> Iterator[str]:
    if not options:
        return
    yield title
    for option in options:
        if not structure:
            yield f"  {option.verdict}"
            continue
        yield f"  {described(option.spread)}"
        verdict = f"; {option.verdict}" if option.verdict else ""
        yield (
            f"    {Seconds(option.step_seconds).text()} a step, "
            f"{Bytes(option.memory_peak).text()}{verdict}"
        )


def _elsewhere(forecast: Forecast) -> Iterator[str]:
    others, goal = forecast.elsewhere, forecast.goal
    yield from _others(f"the same step elsewhere, by {goal}", others)
    if not others or (told := _per_token(others[0], goal)) is None:
        return
    own = next(each for each in others if each.fleet == forecast.fleet.name)
    line = f"  best for {goal}: {_named(others[0])}, {told}"
    if own is not others[0]:
        line += f"; {_named(own)}: {_per_token(own, goal)}"
    yield line


def _scaling(forecast: Forecast) -> Iterator[str]:
    yield from _others("the same batch on fewer and on more", forecast.scaling)
    if (bend := forecast.bend) is None:
        return
    most = max(each.devices for each in forecast.scaling if each.step_seconds)
    formula = "does not bend here (b = 0)"
    if bend.devices is not None:
        formula = f"bends at sqrt(a n/b) = {bend.devices:,.0f} devices"
    real = f"has not bent by {most:,}"
    if bend.devices_real is not None:
        real = f"bends at {bend.devices_real:,.0f}"
    yield (
        f"  T = a n/p + b p, within {bend.error:.1%} of these steps, {formula}; the step itself "
        f"{real} (half of the devices' time lost)"
    )


def _per_token(each: Elsewhere, goal: str) -> str | None:
    values = {
        "time": (each.tokens_per_s, "{:,.0f} tokens/s"),
        "money": (each.dollars_per_billion_tokens, "{} for a billion tokens"),
        "energy": (each.joules_per_token, "{:.3g} J a token"),
        "memory": (each.memory_peak and each.memory_peak / 1e9, "{:.3g} GB of a device"),
    }
    value, words = values[goal]
    if value is None:
        return None
    return words.format(dollars(value) if goal == "money" else value)


def _named(each: Elsewhere) -> str:
    return f"{each.devices:,} x {counted(each.fleet)[-1]}"


def _others(title: str, others: tuple[Elsewhere, ...]) -> Iterator[str]:
    if not others:
        return
    heads = f"{'step':>10}{'tokens/s':>14}{'a device':>11}{'B tokens for':>14}{'J / token':>11}"
    yield f"{title:38}{heads}"
    first = next((each for each in others if each.tokens_per_s), None)
    for each in others:
        name = f"  {_named(each)}"
        if first is None or each.tokens_per_s is None or each.step_seconds is None:
            yield f"{name:38}{each.verdict}"
            continue
        assert first.tokens_per_s is not None
        linear = each.tokens_per_s / each.devices / (first.tokens_per_s / first.devices)
        money, joules = each.dollars_per_billion_tokens, each.joules_per_token
        yield (
            f"{name:38}{Seconds(each.step_seconds).text():>10}{each.tokens_per_s:14,.0f}"
            f"{linear:11.0%}{'-' if money is None else dollars(money):>14}"
            f"{'-' if joules is None else f'{joules:.3g}':>11}"
        )


def _evidence(title: str, known: tuple[Evidence, ...]) -> Iterator[str]:
    yield title
    for each in known:
        named = each.source.startswith(each.basis)
        source = each.source if named else f"{each.basis}, {each.source}"
        yield f"  {each.name}: {each.value} ({source})"
