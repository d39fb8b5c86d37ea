"""What was done, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from narrows.infer.scheduler import Scheduler
from narrows.infer.tally import Durations, Tally

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(scheduler: Scheduler) -> str:
    """Counters, gauges and histograms."""
    tally = scheduler.tally
    lines = _requests(tally) + _figures([
        ("tokens_read_total", "counter", tally.tokens_read, "Tokens of prompts computed."),
        ("tokens_reused_total", "counter", tally.tokens_reused, "Tokens of prompts found read."),
        ("tokens_written_total", "counter", tally.tokens_written, "Tokens written."),
        ("tokens_guessed_total", "counter", tally.tokens_guessed, "Tokens guessed."),
        ("tokens_guessed_right_total", "counter", tally.tokens_guessed_right, "Those right."),
        ("worker_restarts_total", "counter", tally.restarts, "Deaths of the worker."),
        ("texts_running", "gauge", scheduler.running, "Texts read or written now."),
        ("texts_waiting", "gauge", scheduler.waiting, "Texts without a slot."),
        ("slots", "gauge", scheduler.core.slots, "Texts that fit at once."),
    ])  # fmt: skip
    lines += _histogram("first_token_seconds", "From request to first token.", tally.first)
    lines += _histogram("token_seconds", "Between two tokens of a text.", tally.each)
    return "\n".join(lines) + "\n"


def text_of_vectors(tally: Tally) -> str:
    """The same of what an encoder did, whose first is its vectors."""
    lines = _requests(tally) + _figures([
        ("tokens_read_total", "counter", tally.tokens_read, "Tokens of texts computed."),
    ])  # fmt: skip
    lines += _histogram("vectors_seconds", "From request to its vectors.", tally.first)
    return "\n".join(lines) + "\n"


def _requests(tally: Tally) -> list[str]:
    counts = [f'narrows_requests_total{{outcome="{outcome}"}} {count}'
              for outcome, count in tally.requests.items()]  # fmt: skip
    return [*_head("requests_total", "counter", "Requests by how they ended."), *counts]


def _figures(figures: Iterable[tuple[str, str, int, str]]) -> list[str]:
    return [line for name, kind, value, meaning in figures
            for line in (*_head(name, kind, meaning), f"narrows_{name} {value}")]  # fmt: skip


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP narrows_{name} {meaning}", f"# TYPE narrows_{name} {kind}"]


def _histogram(name: str, meaning: str, durations: Durations) -> list[str]:
    bounds = [*(f"{bound:g}" for bound in durations.bounds_s), "+Inf"]
    sums = list(accumulate(durations.counts))
    lines = [f'narrows_{name}_bucket{{le="{bound}"}} {count}'
             for bound, count in zip(bounds, sums, strict=True)]  # fmt: skip
    total = [f"narrows_{name}_sum {durations.sum_s:g}", f"narrows_{name}_count {sums[-1]}"]
    return [*_head(name, "histogram", meaning), *lines, *total]
