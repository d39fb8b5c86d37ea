"""What a plan says of serving: how a model is laid out on a fleet, and how it answers."""

from __future__ import annotations

from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Doubling
from narrows.spec.record import Record


class Quantiles(Record):
    """Seconds that half, nine of ten and 99 of 100 requests wait at most, and their mean."""

    mean: float
    p50: float
    p90: float
    p99: float

    def at(self, percent: int) -> float:
        """One of the three by its number."""
        return {50: self.p50, 90: self.p90, 99: self.p99}[percent]


class Requests(Record):
    """What arrives: tokens of a prompt, of which the first `shared` are kept already, and of its
    answer; `concurrency` requests at a time, or `rate` a second and the concurrency that follows.

    `chunk` tokens of a prompt are computed in a step, or all. `variation`: of the lengths, their
    standard deviation as a share of the mean.
    """

    prompt: int
    answer: int
    concurrency: float | None = None
    rate: float | None = None
    shared: int = 0
    chunk: int | None = None
    variation: float = 0.5


class Guesses(Record):
    """Tokens guessed `ahead` of a step, each right with probability `accept`: `tokens` a step."""

    accept: float
    ahead: int
    tokens: float
    draft: str | None = None


class Placement(Record):
    """Replicas of `tensor` ranks that decode, in which `groups` attend to different requests;
    `apart` more of the same size compute the prompts, or 0: all compute their own.
    """

    replicas: int
    tensor: int
    groups: int
    apart: int
    weight_bits: float
    cache_bits: float


class Held(Record):
    """Bytes of one device."""

    weights: float
    cache: float
    runtime: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.cache + self.runtime


class Usage(Record):
    """What devices do: the share of the time that prompts take (`prefilling`), and that products
    are waited for (`computing`); energy and money for what is written.
    """

    prefilling: float
    computing: float
    joules_per_token: float | None = None
    dollars_per_million_tokens: float | None = None


class Serving(Record):
    """One way to serve and what comes of it; seconds, tokens and requests of the whole fleet.

    `pause`: the longest between two tokens, while a prompt is computed. `room`: requests whose keys
    and values fit at a time.
    """

    placement: Placement
    first_token: Quantiles
    per_token: Quantiles
    pause_s: float
    concurrency: float
    room: float
    tokens_per_s: float
    held: Held
    usage: Usage


class Service(Record):
    """A model served on a fleet: the widest weights and keys that meet the limits, at most tokens.

    Limits hold at the percentile `percent`.
    """

    model_name: str
    model: ModelSpec
    fleet: Fleet
    requests: Requests
    percent: int
    memory_limit: float
    best: Serving
    others: tuple[Serving, ...]
    doubling_decode: tuple[Doubling, ...]
    doubling_prefill: tuple[Doubling, ...]
    guesses: Guesses | None = None
