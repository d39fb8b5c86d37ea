"""How noisy gradients are: the batch beyond which more tokens in it no longer pay.

McCandlish et al. 2018, arXiv:1812.06162, appendix A: a gradient of b tokens has in expectation the
squared norm |G|² + S / b, so that two batches' norms tell both, and S / |G|² is the simple noise
scale in tokens. Both are averaged over steps before they are divided.
"""

from __future__ import annotations

import math

_KEEPS = 0.9
_ALL = 1.0 - 1e-12
EVERY = 10
"""Steps between two looks: each reads every micro-batch's gradient once more."""


class NoiseScale:
    """Averages of |G|² and S over the looks so far."""

    def __init__(self, known: tuple[float, ...] = ()) -> None:
        self.signal, self.noise, self.weight = known or (0.0, 0.0, 0.0)

    def seen(self, small: tuple[float, float], large: tuple[float, float]) -> None:
        """Two batches, each by its tokens and its gradient's squared norm: small ones' mean."""
        (few, norm_few), (many, norm_many) = small, large
        signal = (many * norm_many - few * norm_few) / (many - few)
        noise = (norm_few - norm_many) / (1.0 / few - 1.0 / many)
        if not math.isfinite(signal + noise):
            return
        self.signal += (1.0 - _KEEPS) * (signal - self.signal)
        self.noise += (1.0 - _KEEPS) * (noise - self.noise)
        self.weight += (1.0 - _KEEPS) * (1.0 - self.weight)

    @property
    def tokens(self) -> float | None:
        """The simple noise scale; None while the averages say nothing."""
        if self.weight == 0.0 or self.signal <= 0.0 or self.noise <= 0.0:
            return None
        return self.noise / self.signal

    @property
    def looks(self) -> float:
        """How many there were, by the weight of what is known."""
        return round(math.log1p(-min(self.weight, _ALL)) / math.log(_KEEPS))

    def known(self) -> tuple[float, ...]:
        """What a checkpoint keeps."""
        return self.signal, self.noise, self.weight
