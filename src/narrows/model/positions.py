"""Positions: angles that turn queries and keys, and what is added to scores or masked of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.kernels.interface import Rotation
from narrows.model.weights import Weights
from narrows.spec.model import (
    Alibi,
    Banded,
    Learned,
    Linear,
    ModelSpec,
    Paired,
    Relative,
    Rotary,
    Yarn,
)

Documents = tuple[tuple[int, ...], ...]
"""Of each row, the lengths of what stands in it side by side; they add up to the row's."""


def table(spec: ModelSpec) -> Weights | None:
    """Of positions that are learned, a row each."""
    positions = spec.positions
    if not isinstance(positions, Learned):
        return None
    return Weights(spec.context + positions.extra, spec.width)


def relative(spec: ModelSpec) -> Weights | None:
    """Of distances that are learned, a row for each bucket."""
    positions = spec.positions
    return Weights(positions.buckets, spec.heads) if isinstance(positions, Relative) else None


def within(rows_TD: Tensor, documents: Documents) -> Tensor:
    """Of a table's first rows, those of each position counted from its document's first [B,T,D]."""
    places = [torch.cat([torch.arange(size) for size in row]) for row in documents]
    return rows_TD[torch.stack(places).to(rows_TD.device)]


def angles(
    spec: ModelSpec, count: int, device: torch.device, *, windowed: bool = False
) -> Rotation:
    """Cosine and sine of the first `count` positions; those of layers with a window where they have
    a base of their own.
    """
    # Kept for training too, which cannot use what was made in inference mode.
    with torch.inference_mode(False):
        frequencies_H, growth = frequencies(spec, device, windowed=windowed)
        positions_T = torch.arange(count, dtype=torch.float64, device=device)
        angles_TH = positions_T[:, None] * frequencies_H
        return Rotation((angles_TH.cos() * growth).float(), (angles_TH.sin() * growth).float())


def frequencies(
    spec: ModelSpec, device: torch.device, *, windowed: bool = False
) -> tuple[Tensor, float]:
    """Radians that a position turns each pair by [H] fp64, and what cosine and sine grow by."""
    positions = spec.positions
    assert isinstance(positions, Rotary)
    own = positions.window_base if windowed else None
    base, scaling = (positions.base, positions.scaling) if own is None else (own, None)
    half = turned_width(spec) // 2
    exponents_H = torch.arange(half, dtype=torch.float64, device=device) / half
    frequencies_H = base**-exponents_H
    if isinstance(scaling, Paired):
        factors_H = torch.tensor(scaling.factors(spec.context), dtype=torch.float64, device=device)
        return frequencies_H / factors_H, scaling.growth
    growth = scaling.growth if isinstance(scaling, Yarn) else 1.0
    return slowed(frequencies_H, base, scaling), growth


def turned_width(spec: ModelSpec) -> int:
    """Dimensions of a head that rotary positions turn."""
    assert isinstance(spec.positions, Rotary)
    width = spec.latent.rope_width if spec.latent else spec.head_width
    return 2 * int(width * spec.positions.share / 2)


def slowed(frequencies_H: Tensor, base: float, scaling: Linear | Banded | Yarn | None) -> Tensor:
    """The frequencies, each kept or slowed by the scaling's factor or between the two [H]."""
    match scaling:
        case None:
            return frequencies_H
        case Linear(factor=factor):
            return frequencies_H / factor
        case Banded(factor=factor, low=low, high=high, positions=positions):
            turns_H = positions * frequencies_H / (2 * math.pi)
            kept_H = ((turns_H - low) / (high - low)).clamp(0.0, 1.0)
        case Yarn(factor=factor, low=low, high=high, positions=positions):
            half = frequencies_H.shape[0]

            def pair(turns: float) -> float:
                return half * math.log(positions / (turns * 2 * math.pi)) / math.log(base)

            first, last = pair(high), pair(low)
            if scaling.whole_pairs:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0.0), min(last, 2.0 * half - 1.0)
            pairs_H = torch.arange(half, dtype=torch.float64, device=frequencies_H.device)
            kept_H = 1.0 - ((pairs_H - first) / max(last - first, 1e-3)).clamp(0.0, 1.0)
    return frequencies_H * (kept_H + (1.0 - kept_H) / factor)


def mask(
    spec: ModelSpec, extent: tuple[int, int], window: int | None, table_RN: Tensor | None,
    like: Tensor,
) -> Tensor | None:  # fmt: skip
    """What queries of `extent`, a first position and how many, may attend to of all keys up to the
    last of them: True [T,S] where they may, numbers to add [N,T,S] where positions have any, None
    where causality alone rules from position 0 on, or nothing is masked.
    """
    start, T = extent
    S = start + T
    window = None if window is None or window >= S else window
    added = isinstance(spec.positions, Alibi | Relative)
    if not added and window is None and (not spec.causal or start == 0 or T == 1):
        return None
    distances_TS = distances(T, S, start, like.device)
    limited = spec.causal or window is not None
    allowed_TS = allowed(distances_TS, causal=spec.causal, window=window) if limited else None
    if isinstance(spec.positions, Alibi):
        bias_NTS = alibi(spec.heads, distances_TS)
    elif isinstance(spec.positions, Relative):
        assert table_RN is not None
        bias_NTS = learned(spec.positions, table_RN, distances_TS, causal=spec.causal)
    else:
        return allowed_TS
    if allowed_TS is not None:
        bias_NTS = bias_NTS.masked_fill(~allowed_TS, -torch.inf)
    return bias_NTS.to(like.dtype)


def distances(T: int, S: int, start: int, device: torch.device) -> Tensor:
    """How far each of S keys lies before each of T queries at positions from `start` on [T,S]."""
    queries_T = torch.arange(start, start + T, device=device)
    return queries_T[:, None] - torch.arange(S, device=device)


def allowed(distances_TS: Tensor, *, causal: bool, window: int | None) -> Tensor:
    """Whether a query attends to a key [T,S]; without causality a window reaches both ways."""
    if not causal:
        assert window is not None
        return distances_TS.abs() <= window // 2
    allowed_TS = distances_TS >= 0
    return allowed_TS if window is None else allowed_TS & (distances_TS < window)


def alibi(heads: int, distances_TS: Tensor) -> Tensor:
    """What a distance costs each head [N,T,S]: slopes are 2^(-8/N), its square and so on; where N
    is no power of two, every other slope of twice the next lower power fills up.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (n + 1) / power) for n in range(power)]
    slopes += [2.0 ** (-4.0 * (n + 1) / power) for n in range(0, 2 * (heads - power), 2)]
    slopes_N = torch.tensor(slopes, device=distances_TS.device)
    return -slopes_N[:, None, None] * distances_TS.abs()


def learned(kind: Relative, table_RN: Tensor, distances_TS: Tensor, *, causal: bool) -> Tensor:
    """The learned number of each head for the bucket of a distance [N,T,S]: half of the buckets
    for one distance each, the others for ever wider ranges; both ways where not causal.
    """
    buckets = kind.buckets if causal else kind.buckets // 2
    exact = buckets // 2
    far_TS = distances_TS.clamp_min(0) if causal else distances_TS.abs()
    ranges = math.log(kind.distance / exact)
    wide_TS = (far_TS.clamp_min(1) / exact).log() / ranges * (buckets - exact)
    wide_TS = (exact + wide_TS.long()).clamp_max(buckets - 1)
    buckets_TS = torch.where(far_TS < exact, far_TS, wide_TS)
    if not causal:
        buckets_TS = buckets_TS + buckets * (distances_TS < 0)
    return F.embedding(buckets_TS, table_RN).permute(2, 0, 1)
