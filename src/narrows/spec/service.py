"""What a plan says of serving: how a model is laid out on a fleet, and how it answers."""

from __future__ import annotations

from typing import Literal

from narrows.spec.fleet import Fleet
from narrows.spec.forecast import Evidence
from narrows.spec.ledger import Row
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Doubling
from narrows.spec.record import Record

EngineName = Literal["narrows", "vllm", "trtllm", "sglang", "bare"]
ENGINE_NAMES: dict[EngineName, str] = {
    "narrows": "narrows", "vllm": "vLLM", "trtllm": "TensorRT-LLM", "sglang": "SGLang",
    "bare": "a loop without a server",
}  # fmt: skip
"""What serves, as it is called."""
_ALIKE = 0.99
"""Of two throughputs, what makes no difference."""


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


class Limits(Record):
    """The latest that tokens may come, at a percentile of the requests; None: whenever."""

    first_token_s: float | None = None
    per_token_s: float | None = None
    percent: Literal[50, 90, 99] = 90

    def kept(self, way: Serving) -> bool:
        """Whether a way to serve is quick enough."""
        return self.missed(way) <= 1.0

    def missed(self, way: Serving) -> float:
        """The larger of the two times beside its limit; zero where there is none."""
        pairs = ((way.first_token, self.first_token_s), (way.per_token, self.per_token_s))
        return max(
            (time.at(self.percent) / most for time, most in pairs if most is not None), default=0.0
        )


Reason = Literal[
    "first token too late", "tokens too slow", "too little room", "narrower weights",
    "narrower cache", "fewer tokens", "slower tokens",
]  # fmt: skip
"""Why a way to serve is not the one taken, in the order in which it is asked."""


class Loss(Record):
    """Why a way loses, and by how many times as much."""

    reason: Reason
    times: float


class Swept(Record):
    """What one layout gives with so many requests at a time; seconds at the limits' percentile."""

    placement: Placement
    concurrency: float
    first_token_s: float
    per_token_s: float
    tokens_per_s: float


class Changed(Record):
    """What comes of one change, of the layout as it is or of the best that is `searched` for;
    `most` requests a second are answered where they are too many.
    """

    name: str
    outcome: Literal["kept", "late", "full", "saturated"]
    searched: bool = False
    way: Serving | None = None
    most: float | None = None


class Service(Record):
    """A model served on a fleet: the widest weights and keys that meet the limits, at most tokens.

    `engine` is what serves. `prefill` are the operations of a prompt in a pass of its own, `decode`
    those of one step, on a device. `sweep`: each width of a replica, of one request and more.
    `others` are the next best, and behind them those that come too late. `changes` alone, each the
    rest as it is.
    """

    model_name: str
    model: ModelSpec
    fleet: Fleet
    requests: Requests
    limits: Limits
    memory_limit: float
    best: Serving
    prefill: tuple[Row, ...]
    decode: tuple[Row, ...]
    sweep: tuple[Swept, ...]
    others: tuple[Serving, ...]
    changes: tuple[Changed, ...]
    doubling_decode: tuple[Doubling, ...]
    doubling_prefill: tuple[Doubling, ...]
    answers: tuple[Evidence, ...]
    facts: tuple[Evidence, ...]
    guesses: Guesses | None = None
    engine: EngineName = "vllm"

    def loses(self, way: Serving) -> Loss:
        """Why `way` is not the best."""
        best, mine, its = self.best, self.best.placement, way.placement
        if self.limits.missed(way) > 1.0:
            first = Limits(first_token_s=self.limits.first_token_s, percent=self.limits.percent)
            late: Reason = "tokens too slow" if first.kept(way) else "first token too late"
            return Loss(reason=late, times=self.limits.missed(way))
        if way.room < way.concurrency and best.room >= best.concurrency:
            return Loss(reason="too little room", times=way.concurrency / max(way.room, 1.0))
        if its.weight_bits < mine.weight_bits:
            return Loss(reason="narrower weights", times=its.weight_bits / mine.weight_bits)
        if its.cache_bits < mine.cache_bits:
            return Loss(reason="narrower cache", times=its.cache_bits / mine.cache_bits)
        tokens = way.tokens_per_s / best.tokens_per_s
        if tokens < _ALIKE:
            return Loss(reason="fewer tokens", times=tokens)
        return Loss(reason="slower tokens", times=way.per_token.mean / best.per_token.mean)
