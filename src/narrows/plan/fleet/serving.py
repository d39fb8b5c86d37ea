"""Seconds to the first token and between tokens of a model that is served by continuous batching.

Requests circulate: each waits until its prompt is computed, writes its answer beside the others,
and is followed by the next. The queue before the prefill is a closed one: mean value analysis
(Reiser & Lavenberg, 1980, doi:10.1145/322186.322195) in Schweitzer's approximation (1979).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from narrows.plan.fleet import constants
from narrows.plan.fleet.passes import (
    Prompt,
    Replica,
    cache_bytes_per_token,
    decode_seconds,
    prefill_seconds,
    weights_bytes,
)
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.service import EngineName

_ROUNDS = 3
"""Of the fixed point between how many write and how quickly each does."""


class Apart(msgspec.Struct, frozen=True, kw_only=True):
    """Other devices that compute the prompts: how each set is laid out, and how many sets serve one
    replica that decodes.
    """

    replica: Replica
    sets: float = 1.0


class Speculation(msgspec.Struct, frozen=True, kw_only=True):
    """`ahead` tokens are guessed, each right with probability `accept`, and checked in one step
    (arXiv:2211.17192). `draft`: the model that guesses; None: one more block beside the model's.
    """

    accept: float
    ahead: int
    draft: Work | None = None

    @property
    def tokens(self) -> float:
        """Expected of one step: (1 - a^(k+1)) / (1 - a)."""
        if self.accept >= 1.0:
            return self.ahead + 1.0
        return float((1.0 - self.accept ** (self.ahead + 1)) / (1.0 - self.accept))

    @property
    def variance(self) -> float:
        """Of the tokens of one step: at least i come with probability a^(i-1)."""
        squares = sum((2 * i + 1) * self.accept**i for i in range(self.ahead + 1))
        return squares - self.tokens**2


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`concurrency` requests at a time on one replica, each of `prompt` tokens and `answer` more.

    The first `shared` tokens of a prompt are kept already; `chunk` of the rest are computed in one
    step, or all. `rounds`: how many requests of nearly one length follow one another, all first
    ones at once; None: steadily on, of any length.
    """

    concurrency: float
    prompt: float
    answer: float
    shared: float = 0.0
    chunk: int | None = None
    apart: Apart | None = None
    speculation: Speculation | None = None
    rounds: float | None = None
    engine: EngineName = "vllm"

    @property
    def new(self) -> float:
        """Tokens of a prompt that are computed."""
        return max(1.0, self.prompt - self.shared)

    @property
    def further(self) -> float:
        """Tokens of an answer after the first, which comes of the prompt."""
        return max(0.0, self.answer - 1.0)

    @property
    def chunks(self) -> float:
        """Steps that a prompt is computed in."""
        return 1.0 if self.chunk is None else math.ceil(self.new / self.chunk)


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Means of seconds: `first_token` with its `wait`, `per_token`; of one step of `decode`, and
    what a prompt adds to it (`service`). Requests that write (`running`), and that there is room
    for (`room`). Bytes of one device.
    """

    first_token: float
    per_token: float
    wait: float
    decode: float
    service: float
    running: float
    room: float
    weights_bytes: float
    cache_bytes: float


class _Steady(NamedTuple):
    """Of the steady state: requests that there is room for and that write, seconds of one step
    without prompts (`decode`) and with those that join, of what a prompt adds, of the steps that it
    is computed in, of waiting for and in them, and of writing an answer.
    """

    customers: float
    running: float
    decode: float
    step: float
    service: float
    taken: float
    wait: float
    writing: float


def serve(work: Work, replica: Replica, load: Load, fleet: Fleet) -> Served:
    """Steady state under a constant number of requests."""
    room = roomy(work, replica, load, fleet)
    customers = min(load.concurrency, max(1.0, room))
    state = _steady(work, replica, load, fleet, customers)
    return Served(
        first_token=_first_token(work, replica, load, fleet, state),
        per_token=state.step / _tokens(load), wait=max(0.0, state.wait - state.taken),
        decode=state.decode, service=state.service, running=state.running, room=room,
        weights_bytes=weights_of(work, replica, load),
        cache_bytes=state.running * _held(work, replica, load) / replica.attention_data,
    )  # fmt: skip


def _steady(work: Work, replica: Replica, load: Load, fleet: Fleet, customers: float) -> _Steady:
    running = customers
    for _ in range(_ROUNDS):
        decode = step_seconds(work, replica, load, running, fleet)
        decode += host_seconds(work, replica, load, running)
        service = joined_seconds(work, replica, load, running, fleet)
        step = _step(decode, service, load, running)
        writing = load.further * step / _tokens(load)
        # A prompt in chunks takes as many steps.
        taken = service + (load.chunks - 1.0) * decode
        # Whose prompts were computed in turn end in turn, and do not meet again.
        regular = load.rounds is not None and load.apart is None
        wait = taken if regular else queue(taken, writing, customers)
        running = min(customers, max(1.0, customers * writing / (writing + wait)))
    return _Steady(customers, running, decode, step, service, taken, wait, writing)


def _first_token(work: Work, replica: Replica, load: Load, fleet: Fleet, state: _Steady) -> float:
    engine = constants.ENGINES[load.engine]
    own = engine.prompt * prefill_seconds(
        work, load.apart.replica if load.apart else replica,
        Prompt(load.new, cached=load.shared), fleet,
    )  # fmt: skip
    # One process of an engine receives and tokenizes requests, in turn.
    host = engine.request + load.prompt * engine.token
    found = host + state.wait + max(0.0, own - state.taken) + engine.launch * _launches(work)
    if load.apart is not None:
        found += constants.SERVING_HANDED
    else:
        found += engine.held_back * state.step + (replica.attention_data - 1.0) * engine.gathered
    if load.rounds is not None:
        waiting = _burst(load, state.customers) * state.service + 0.5 * (state.customers - 1) * host
        found += (1.0 if load.apart else engine.bunched) * waiting / load.rounds
    # What finds no room for its cache waits until another ends (Little, 1961).
    return found + (load.concurrency / state.customers - 1.0) * (state.writing + state.wait)


def host_seconds(work: Work, replica: Replica, load: Load, running: float) -> float:
    """What an engine adds to a step of `running` requests; each group schedules its own."""
    engine, own = constants.ENGINES[load.engine], running / replica.attention_data
    return engine.step + work.layers * engine.block + own * engine.sequence


def step_seconds(work: Work, replica: Replica, load: Load, running: float, fleet: Fleet) -> float:
    """One step of `running` requests, guesses and their check included."""
    past, guess = load.prompt + load.answer / 2.0, load.speculation
    if guess is None:
        return decode_seconds(work, replica, running, past, fleet)
    step = decode_seconds(work, replica, running, past, fleet, guess.ahead + 1.0)
    if guess.draft is not None:
        return step + guess.ahead * decode_seconds(guess.draft, replica, running, past, fleet)
    return step + guess.ahead / work.layers * decode_seconds(work, replica, running, past, fleet)


def joined_seconds(work: Work, replica: Replica, load: Load, running: float, fleet: Fleet) -> float:
    """What one prompt adds to the steps that it is computed in; apart, to a pass of others."""
    among = max(1.0, _joining(load, running))
    prompt = Prompt(load.new, cached=load.shared, beside=running, among=among)
    slower = constants.ENGINES[load.engine].prompt
    if load.apart is not None:
        batched = Prompt(load.new, cached=load.shared, beside=constants.SERVING_BATCHED)
        return slower * prefill_seconds(work, load.apart.replica, batched, fleet) / load.apart.sets
    added = slower * prefill_seconds(work, replica, prompt, fleet)
    # Each chunk reads the keys and values of those before it.
    again = 0.5 * (load.chunks - 1.0) * load.new * cache_bytes_per_token(work.spec, replica)
    rate = float(fleet.memory_bandwidth.value) * constants.SERVING_CACHE
    return added + again / rate + (load.chunks - 1.0) * constants.SERVING_JOIN


def roomy(work: Work, replica: Replica, load: Load, fleet: Fleet) -> float:
    """Requests whose keys and values fit beside the weights; negative where these do not."""
    capacity = float(fleet.memory_capacity.value)
    engine = constants.ENGINES[load.engine]
    taken, rest = engine.runtime + weights_of(work, replica, load), engine.rest
    free = constants.SERVING_HELD * capacity - taken if rest is None else rest * (capacity - taken)
    # What all prompts begin with is kept once.
    shared = load.shared * cache_bytes_per_token(work.spec, replica)
    return (free - shared) / _held(work, replica, load) * replica.attention_data


def weights_of(work: Work, replica: Replica, load: Load) -> float:
    """Bytes of one device, a draft's weights included."""
    held = weights_bytes(work, replica)
    if load.speculation is None:
        return held
    draft = load.speculation.draft
    return held + (weights_bytes(draft, replica) if draft else held / work.layers)


def queue(service: float, thinking: float, customers: float) -> float:
    """Seconds at a station of `service` seconds each, of `customers` that come back after
    `thinking`: R = s (1 + (n-1) R / (Z + R) - U / 2), as who is being served is half done.
    """
    half = (thinking - service * customers) / 2.0
    rest = service * thinking - service * service * (customers - 1.0) / 2.0
    return math.sqrt(half * half + rest) - half


def _tokens(load: Load) -> float:
    """That a step gives one request."""
    return load.speculation.tokens if load.speculation else 1.0


def _launches(work: Work) -> float:
    """What a prompt's pass starts one by one, in blocks of experts."""
    latent = constants.SERVING_LAUNCHED_LATENT if work.spec.latent is not None else 0.0
    return work.layers_experts + work.layers * (constants.SERVING_LAUNCHED + latent)


def _burst(load: Load, customers: float) -> float:
    """Prompts' times that each of so many who come at once waits beyond its own, on average: those
    of one pass are all done at its end.
    """
    together = min(customers, max(1.0, constants.SERVING_BATCHED / load.new))
    return 0.5 * (customers + together) - 1.0


def _step(decode: float, service: float, load: Load, running: float) -> float:
    """Seconds of a step of `decode` that prompts join."""
    if load.apart is not None:
        return decode
    # In chunks, at most one joins a step.
    joining = _joining(load, running)
    added = joining * service
    if load.chunk is not None:
        added = min(added, service / load.chunks)
    starting = constants.SERVING_JOIN * -math.expm1(-joining)
    return decode + added + starting


def _joining(load: Load, running: float) -> float:
    """Prompts that join a step: one for each answer of the others that ends."""
    return (running - 1.0) * _tokens(load) / max(load.further, 1.0)


def _held(work: Work, replica: Replica, load: Load) -> float:
    """Bytes of one request on the devices that attend to it, where engines set aside what an answer
    may need, or its mean.
    """
    grown = constants.ENGINES[load.engine].reserved
    tokens = load.new + grown * load.answer
    held = tokens * cache_bytes_per_token(work.spec, replica)
    if load.speculation and load.speculation.draft:
        held += tokens * cache_bytes_per_token(load.speculation.draft.spec, replica)
    return held
