"""Scaling laws: what loss a model of N parameters reaches on D tokens, and the best N for a budget.

All constants of the laws stand here, each with its source. The laws were fitted on models of 44M to
16B parameters on web text (and, for repetition, 7M to 9B): for smaller models and other tokenizers
they are extrapolated, so their loss ranks choices. Within those sizes it may be shown as the law's,
of its text and its tokenizer.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from narrows.plan.layouts import Array


class LossLaw(msgspec.Struct, frozen=True, kw_only=True):
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv:2203.15556)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float


# Besiroglu et al. 2024, arXiv:2404.10102: the same data fitted again, consistent with Hoffmann's
# approaches 1 and 2, as the printed constants of approach 3 are not.
LOSS_LAW = LossLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)

FITTED_PARAMETERS = (44e6, 16e9)

# Muennighoff et al. 2023, arXiv:2305.16264, appendix A: how fast repeated tokens and parameters
# beyond what the unique tokens call for lose their worth.
REPEATS_WORTH = 15.387756
EXCESS_WORTH = 5.309743

# The same, figure 1: repeated tokens are nearly as good as new ones for four epochs and worthless
# after forty.
EPOCHS_FREE = 4
EPOCHS_MOST = 40

# Hoffmann et al. 2022, table 3: near compute-optimal.
TOKENS_PER_PARAMETER = 20

# Li et al. 2025, arXiv:2503.04715 ("Step Law"): peak learning rate of AdamW by parameters without
# vocabulary and tokens, batch in tokens by tokens; fitted on 60M to 1B parameters.
LEARNING_RATE_AT_1 = 1.79
LEARNING_RATE_BY_PARAMETERS = -0.713
LEARNING_RATE_BY_TOKENS = 0.307
BATCH_TOKENS_AT_1 = 0.58
BATCH_TOKENS_BY_TOKENS = 0.571


def loss(parameters: Array, tokens: Array, unique_tokens: float | None) -> Array:
    """Loss by the law; `unique_tokens` is None where data does not run out.

    Repeated tokens and excess parameters count for less, as in arXiv:2305.16264:
    D' = U + U R* (1 - exp(-R / R*)), R = D / U - 1; N' likewise around the N that U calls for.
    """
    if unique_tokens is not None:
        unique = np.minimum(unique_tokens, tokens)
        tokens = _worth(tokens, unique, REPEATS_WORTH)
        enough = np.minimum(optimal_parameters(unique), parameters)
        parameters = _worth(parameters, enough, EXCESS_WORTH)
    law = LOSS_LAW
    return np.asarray(law.E + law.A / parameters**law.alpha + law.B / tokens**law.beta)


def optimal_parameters(tokens: Array | float) -> Array:
    """The N for which `tokens` is compute-optimal: dL/dN and dL/dD equal per FLOP, C = 6 N D."""
    law = LOSS_LAW
    ratio = (law.alpha * law.A) / (law.beta * law.B)
    return np.asarray((ratio * np.asarray(tokens) ** law.beta) ** (1 / law.alpha))


def optimal_tokens(parameters: Array | float) -> Array:
    """The D for which `parameters` is compute-optimal."""
    law = LOSS_LAW
    ratio = (law.beta * law.B) / (law.alpha * law.A)
    return np.asarray((ratio * np.asarray(parameters) ** law.alpha) ** (1 / law.beta))


def learning_rate(parameters: float, tokens: float) -> float:
    """Peak learning rate for `parameters` without vocabulary, at the batch of `batch_tokens`."""
    by_size = math.pow(parameters, LEARNING_RATE_BY_PARAMETERS)
    return LEARNING_RATE_AT_1 * by_size * math.pow(tokens, LEARNING_RATE_BY_TOKENS)


def batch_tokens(tokens: float) -> float:
    """Tokens in an optimizer step of a training on `tokens`."""
    return BATCH_TOKENS_AT_1 * math.pow(tokens, BATCH_TOKENS_BY_TOKENS)


def batch_tokens_of_steps(steps: int) -> float:
    """Tokens in each of `steps` steps: the batch that is right for as many times itself."""
    own = BATCH_TOKENS_AT_1 * math.pow(steps, BATCH_TOKENS_BY_TOKENS)
    return math.pow(own, 1 / (1 - BATCH_TOKENS_BY_TOKENS))


def _worth(amount: Array, first: Array, fades: float) -> Array:
    excess = amount / first - 1
    return np.asarray(first + first * fades * (1 - np.exp(-excess / fades)))
