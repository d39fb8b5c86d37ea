"""From logits to a token.

Small functions on logits [.., V], composed by `shaped` in one order: repetition penalty,
temperature, top-k, top-p, min-p. It is the order of transformers'
`GenerationMixin._get_logits_processor`, so that the same numbers mean the same here and there. A
token that is ruled out has the logit -inf.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable
from typing import final

import numpy as np

from narrows.kernels.arrays import Flags, Floats
from narrows.kernels.draw import draw, tempered
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.record import Record

_GREEDY = 1e-6
"""Below this temperature fp32 logits that differ at all leave one token."""
SEEDS = 2**63
"""How many there are."""
_NEVER = np.float32(-math.inf)
_LEAST = float(np.finfo(np.float32).tiny)
"""Of less fp32 may make 0, which no odds are below: then not even the likeliest would stay."""
_PENALTY_MOST = 1e6
"""And one over it the least: beyond, logits over it and over the temperature may leave fp32."""
_FEW = 256
"""The likeliest tokens, among which top-p mostly ends; sorting all takes twenty times as long."""


class Sampling(Record):
    """How a token is chosen; absent is off. Temperature 0 takes the likeliest token always.

    `repetition_penalty` counts the prompt's tokens too; `presence_penalty`, once, and
    `frequency_penalty`, for each time, are taken from the logits of tokens that were written.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            hint = "use 0 for the likeliest token, 1 for the model's own odds"
            raise BadInput(f"temperature is {self.temperature}", hint=hint)
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"top-k is {self.top_k}", hint="use at least 1, or leave it out")
        if self.top_p is not None and not 0.0 <= self.top_p <= 1.0:
            raise BadInput(f"top-p is {self.top_p}", hint="a share from 0 to 1, as 0.9")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise BadInput(f"min-p is {self.min_p}", hint="a share from 0 to 1, as 0.05")
        if not 1 / _PENALTY_MOST <= self.repetition_penalty <= _PENALTY_MOST:
            what = f"repetition penalty is {self.repetition_penalty}"
            raise BadInput(what, hint="use 1 for none, 1.1 for a little")
        biases = [("logit bias", bias) for bias in self.logit_bias.values()]
        for name, value in (
            ("presence penalty", self.presence_penalty),
            ("frequency penalty", self.frequency_penalty), *biases,
        ):  # fmt: skip
            if not math.isfinite(value):
                raise BadInput(f"{name} is {value}", hint="use 0 for none")
        if not 0 <= self.seed < SEEDS:
            raise BadInput(f"seed is {self.seed}", hint="use a whole number from 0 to 2^63 - 1")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        return self.temperature < _GREEDY


@final
class Sampler:
    """Chooses the tokens of one sequence: it remembers what was said and where its seed is."""

    def __init__(self, sampling: Sampling, vocabulary: int) -> None:
        self.sampling = sampling
        self._generator = np.random.default_rng(sampling.seed)
        self.vocabulary = vocabulary
        self._seen: set[int] = set()
        self._counts: Counter[int] = Counter()
        for token in sampling.logit_bias:
            if not 0 <= token < vocabulary:
                what = f"logit bias names token {token}; the tokenizer has {vocabulary}"
                raise BadInput(what, hint="leave it out")

    def copy(self) -> Sampler:
        """Another that remembers the same, and draws by the same numbers from here on."""
        other = Sampler(self.sampling, self.vocabulary)
        other._generator = copy.deepcopy(self._generator)
        other._seen, other._counts = set(self._seen), self._counts.copy()
        return other

    def saw(self, tokens: Iterable[int]) -> None:
        """Count `tokens`, of the prompt or chosen elsewhere, among what was said."""
        self._seen.update(tokens)

    def choose(self, logits_V: Floats, allowed_V: Flags | None = None) -> int:
        """The next token, one of those that are allowed; ids from `vocabulary` on, which no text
        has, are never chosen.
        """
        logits_V = logits_V[: self.vocabulary]
        token, most = likeliest(logits_V)
        if not math.isfinite(most):
            raise RunFailed(
                "the model answers with numbers that are not finite",
                hint="its training went wrong; try an earlier checkpoint (--checkpoint)",
            )
        if allowed_V is not None or not self._takes_likeliest:
            leaned_V = self._leaned(logits_V)
            if allowed_V is not None:
                leaned_V = np.where(allowed_V, leaned_V, _NEVER)
            logits_V = shaped(leaned_V, self.sampling, self._marked() if self._penalises else None)
            greedy = self.sampling.greedy
            token = likeliest(logits_V)[0] if greedy else draw(logits_V, self._generator)
        self._seen.add(token)
        self._counts[token] += 1
        return token

    @property
    def _penalises(self) -> bool:
        return self.sampling.repetition_penalty != 1.0

    @property
    def _takes_likeliest(self) -> bool:
        """Whether the model's own likeliest token is taken, whatever was said."""
        own = self.sampling
        leans = own.logit_bias or own.presence_penalty or own.frequency_penalty
        return own.greedy and not leans and not self._penalises

    def _marked(self) -> Flags:
        seen_V = np.zeros(self.vocabulary, dtype=bool)
        seen_V[list(self._seen)] = True
        return seen_V

    def _leaned(self, logits_V: Floats) -> Floats:
        """With the bias, and without the presence and frequency penalties of what was chosen."""
        own = self.sampling
        leaned = own.presence_penalty or own.frequency_penalty
        taken = {
            token: own.presence_penalty + own.frequency_penalty * times
            for token, times in (self._counts.items() if leaned else ())
        }
        changed = taken.keys() | own.logit_bias.keys()
        if not changed:
            return logits_V
        logits_V = logits_V.copy()
        for token in changed:
            logits_V[token] += own.logit_bias.get(token, 0.0) - taken.get(token, 0.0)
        return logits_V


def likeliest(logits_V: Floats) -> tuple[int, float]:
    """The token of the largest logit, the first of several, and that logit; NaN counts as larger
    than all.
    """
    token = int(logits_V.argmax())
    return token, float(logits_V[token])


def shaped(logits_V: Floats, sampling: Sampling, seen_V: Flags | None) -> Floats:
    """The logits that a token is drawn from; at temperature 0 those whose largest is taken."""
    if sampling.repetition_penalty != 1.0 and seen_V is not None:
        logits_V = penalised(logits_V, seen_V, sampling.repetition_penalty)
    if sampling.greedy:
        return logits_V
    logits_V = tempered(logits_V, sampling.temperature)
    if sampling.top_k is not None:
        logits_V = top_k(logits_V, sampling.top_k)
    if sampling.top_p is not None:
        logits_V = top_p(logits_V, sampling.top_p)
    if sampling.min_p is not None:
        logits_V = min_p(logits_V, sampling.min_p)
    return logits_V


def penalised(logits_V: Floats, seen_V: Flags, penalty: float) -> Floats:
    """Logits of seen tokens divided by `penalty`, multiplied where negative (arXiv:1909.05858)."""
    by = np.float32(penalty)
    return np.where(seen_V, np.where(logits_V > 0, logits_V / by, logits_V * by), logits_V)


def top_k(logits_V: Floats, k: int) -> Floats:
    """The k likeliest alone (arXiv:1805.04833), and what is as likely as the last of them."""
    if k >= logits_V.shape[-1]:
        return logits_V
    return _from(np.partition(logits_V, -k)[..., -k, None], logits_V)


def top_p(logits_V: Floats, p: float) -> Floats:
    """The fewest likeliest whose odds reach p (arXiv:1904.09751); at least one."""
    if p == 1.0:
        return logits_V
    p = max(p, _LEAST)
    few = min(_FEW, logits_V.shape[-1])
    few_V = -np.sort(-np.partition(logits_V, -few)[..., -few:])
    most_1 = few_V[..., :1]
    odds_V = np.exp(few_V - most_1) / np.exp(logits_V - most_1).sum(-1, keepdims=True)
    beyond_V = odds_V.cumsum(-1) - odds_V >= p
    least_1 = np.where(beyond_V, math.inf, few_V).min(-1, keepdims=True)
    # Where all of the few are needed, or equals stand on both sides, order decides.
    unclear_V = beyond_V & (few_V == least_1)
    if not beyond_V[..., -1].all() or unclear_V.any():
        return _sorted_top_p(logits_V, p)
    return _from(least_1, logits_V)


def _sorted_top_p(logits_V: Floats, p: float) -> Floats:
    places_V = np.argsort(-logits_V, axis=-1, kind="stable")
    ordered_V = np.take_along_axis(logits_V, places_V, -1)
    odds_V = np.exp(ordered_V - ordered_V[..., :1])
    odds_V = odds_V / odds_V.sum(-1, keepdims=True)
    left_V = np.where(odds_V.cumsum(-1) - odds_V >= p, _NEVER, ordered_V)
    found_V = np.empty_like(logits_V)
    np.put_along_axis(found_V, places_V, left_V, -1)
    return found_V


def min_p(logits_V: Floats, p: float) -> Floats:
    """Those at least p times as likely as the likeliest (arXiv:2407.01082)."""
    if p == 0.0:
        return logits_V
    return _from(logits_V.max(-1, keepdims=True) + np.float32(math.log(p)), logits_V)


def _from(least_1: Floats, logits_V: Floats) -> Floats:
    """What is no less than that alone."""
    return np.where(logits_V < least_1, _NEVER, logits_V)
