"""How seconds spread over requests: the percentiles around what `serving` says of the mean.

The wait for a prefill has the tail of a single server's queue under load,
P(W > t) = u exp(-u t / E W) with u the share of its time that it is busy (Kingman, 1962,
doi:10.1017/S0305004100036094; exact of M/M/1), and lengths that vary by c lengthen it by 1 + c^2
(Pollaczek and Khinchine). Seconds a token are the mean over an answer, so that the prompts which
join in its time make them vary as a Poisson number of them does.
"""

from __future__ import annotations

import math

from narrows.plan.fleet.passes import Replica
from narrows.plan.fleet.serving import Load, Served, step_seconds
from narrows.plan.fleet.work import Work
from narrows.spec.fleet import Fleet
from narrows.spec.service import Quantiles

# Of the standard normal distribution.
_NORMAL = {0.5: 0.0, 0.9: 1.2816, 0.99: 2.3263}


def first_token(answer: Served, load: Load, variation: float) -> Quantiles:
    """Seconds until the first token."""
    wait = answer.wait * (1.0 + variation**2)
    certain = answer.first_token - answer.wait
    busy = min(0.999, prefilling(answer, load))
    found = [certain + _tail(wait, busy, share) for share in _NORMAL]
    return Quantiles(mean=certain + wait, p50=found[0], p90=found[1], p99=found[2])


def per_token(
    answer: Served, load: Load, steady: bool, variation: float, beside: tuple[Work, Replica, Fleet]
) -> Quantiles:
    """Seconds between tokens, the mean over an answer; unless `steady`, how many write varies."""
    work, replica, fleet = beside
    tokens = load.speculation.tokens if load.speculation else 1.0
    spread = 0.0
    if load.apart is None:
        # As many prompts join in the time of an answer as requests run beside it.
        joined = math.sqrt((answer.running - 1.0) * (1.0 + variation**2))
        spread = (answer.service * joined / max(1.0, load.further)) ** 2
    if not steady:
        more = answer.running + math.sqrt(answer.running)
        slower = step_seconds(work, replica, load, more, fleet) - step_seconds(
            work, replica, load, answer.running, fleet
        )
        spread += (slower / tokens) ** 2
    if load.speculation:
        # Steps until an answer is whole: a renewal process (Feller, 1949, doi:10.2307/1990420).
        spread += (
            answer.per_token**2 * load.speculation.variance / (tokens * max(1.0, load.further))
        )
    sigma = min(math.sqrt(spread), answer.per_token / 3.0)
    found = [answer.per_token + point * sigma for point in _NORMAL.values()]
    return Quantiles(mean=answer.per_token, p50=found[0], p90=found[1], p99=found[2])


def prefilling(answer: Served, load: Load) -> float:
    """The share of the time in which some prompt is being computed: each request has one a cycle
    (Little, 1961, doi:10.1287/opre.9.3.383).
    """
    cycle = load.further * answer.per_token + answer.wait + answer.service
    together = min(load.concurrency, max(1.0, answer.room))
    return min(1.0, together * answer.service / cycle)


def _tail(wait: float, busy: float, share: float) -> float:
    if wait <= 0.0 or busy <= 1.0 - share:
        return 0.0
    return wait / busy * math.log(busy / (1.0 - share))
