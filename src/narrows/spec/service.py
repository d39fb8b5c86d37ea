"""What a plan says of serving: how a model is laid out on a fleet, and how it answers."""

from __future__ import annotations

from narrows.spec.fleet import Fleet
from narrows.spec.model import ModelSpec
from narrows.spec.record import Record


class Serving(Record):
    """One way to serve: replicas of `tensor` ranks, bits of a weight, and what comes of it."""

    replicas: int
    tensor: int
    weight_bits: float
    first_token_s: float
    per_token_s: float
    tokens_per_s: float
    memory_bytes: float
    dollars_per_million_tokens: float | None = None
    verdict: str = ""


class Service(Record):
    """A model served to `concurrency` requests at a time, each of `prompt` and `answer` tokens."""

    model_name: str
    model: ModelSpec
    fleet: Fleet
    concurrency: int
    prompt: int
    answer: int
    memory_limit: float
    best: Serving
    others: tuple[Serving, ...]
