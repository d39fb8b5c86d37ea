"""What a model is made of. Choices are types: a rotary position is another record, not a flag."""

from __future__ import annotations

from typing import Literal

from narrows.spec.record import Record


class Learned(Record, tag="learned", tag_field="type"):
    """A position embedding per position, added to the token embedding (GPT-2); `extra` rows more
    than positions, as OPT keeps two before the first.
    """

    extra: int = 0


class Linear(Record, tag="linear", tag_field="type"):
    """Rotations slowed by `factor`, for contexts as many times longer (arXiv:2306.15595)."""

    factor: float


class Banded(Record, tag="llama3", tag_field="type"):
    """Llama 3.1's: slow rotations, of fewer than `low` turns in `positions`, slowed by `factor`,
    quick ones of more than `high` kept, and those between mixed (arXiv:2407.21783).
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    positions: int = 8192


class Yarn(Record, tag="yarn", tag_field="type"):
    """Rotations of fewer than `low` turns in `positions` slowed by `factor`, of more than `high`
    kept, those between mixed; turned queries and keys grow by `growth` (arXiv:2309.00071).
    """

    factor: float
    positions: int = 4096
    low: float = 1.0
    high: float = 32.0
    growth: float = 1.0
    whole_pairs: bool = True


class Paired(Record, tag="longrope", tag_field="type"):
    """Each pair's rotation slowed by a factor of its own: in contexts up to `positions` by `short`,
    beyond, as far as `context`, by `long`; turned queries and keys grow by `growth`
    (arXiv:2402.13753).
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    positions: int
    context: int
    growth: float = 1.0

    def factors(self, context: int) -> tuple[float, ...]:
        """Those of a context."""
        return self.short if context <= self.positions else self.long


Scaling = Linear | Banded | Yarn | Paired


class Rotary(Record, tag="rotary", tag_field="type"):
    """Queries and keys turned by an angle that grows with the position (arXiv:2104.09864).

    Layers with a window may have a base of their own, which no `scaling` slows; of each head the
    first `share` is turned.
    """

    base: float = 10_000.0
    window_base: float | None = None
    share: float = 1.0
    scaling: Scaling | None = None


class Alibi(Record, tag="alibi", tag_field="type"):
    """A penalty on distance added to the scores, without parameters (arXiv:2108.12409)."""


class Relative(Record, tag="relative", tag_field="type"):
    """A learned number per head and bucket of distance, shared by all layers; from `distance` on
    all are in the last bucket (arXiv:1910.10683).
    """

    buckets: int = 32
    distance: int = 128


class LayerNorm(Record, tag="layer_norm", tag_field="type"):
    """Centre and scale (arXiv:1607.06450).

    `scale` False: no parameters at all (OLMo). `biases` None: where the projections have them.
    """

    epsilon: float = 1e-5
    scale: bool = True
    biases: bool | None = None


class RMSNorm(Record, tag="rms_norm", tag_field="type"):
    """Scale only (arXiv:1910.07467)."""

    epsilon: float = 1e-5


class GELU(Record, tag="gelu", tag_field="type"):
    """One matrix up, GELU in its tanh form or exact, one matrix down (arXiv:1606.08415)."""

    exact: bool = False


class ReLU(Record, tag="relu", tag_field="type"):
    """One matrix up, max(0, x), one matrix down (arXiv:1706.03762)."""


class SquaredReLU(Record, tag="squared_relu", tag_field="type"):
    """One matrix up, max(0, x)², one matrix down (arXiv:2109.08668)."""


class SwiGLU(Record, tag="swiglu", tag_field="type"):
    """Gate and up, silu(gate) · up, one matrix down (arXiv:2002.05202)."""


class GeGLU(Record, tag="geglu", tag_field="type"):
    """Gate and up, gelu(gate) · up in its tanh form, one matrix down (arXiv:2002.05202)."""


class ClampedSwiGLU(Record, tag="clamped_swiglu", tag_field="type"):
    """gate · sigmoid(`slope` · gate) · (up + 1), the gate at most `limit` and up within ± `limit`,
    as gpt-oss has it (arXiv:2508.10925).
    """

    limit: float = 7.0
    slope: float = 1.702


class Softmax(Record, tag="softmax", tag_field="type"):
    """An expert's share among all, or where `normalised` among the chosen (arXiv:1701.06538).
    Biases of the router are added to its logits.
    """

    normalised: bool = True


class Sigmoid(Record, tag="sigmoid", tag_field="type"):
    """Each expert's own share, where `normalised` divided by the sum of the chosen. Biases of the
    router count in the choice alone, and no gradient reaches them (arXiv:2408.15664).
    """

    normalised: bool = True


Gate = Softmax | Sigmoid


class Experts(Record):
    """Feed-forward as a choice: each token goes through `chosen` of `count` experts of `width`, and
    through all `shared` ones (arXiv:1701.06538, arXiv:2401.06066).

    The first `dense_layers` keep the dense feed-forward. With `capacity` an expert takes at most
    capacity · tokens · chosen / count tokens of a sequence and drops the rest; without, it takes
    all. What the chosen give is weighted by the `gate` times `scale`; of `groups` of experts only
    the `groups_open` that score best are open to a token.
    """

    count: int
    chosen: int
    width: int
    shared: int = 0
    shared_width: int | None = None
    dense_layers: int = 0
    capacity: float | None = None
    router_biases: bool = False
    biases: bool = False
    gate: Gate = Softmax()
    scale: float = 1.0
    groups: int = 1
    groups_open: int = 1

    @property
    def shared_total(self) -> int:
        """Width of all shared experts together."""
        return self.shared * (self.shared_width or self.width)


class Latent(Record):
    """Keys and values from a common vector of `kv_rank`, beside `rope_width` turned dimensions that
    all heads share; values of `value_width` (arXiv:2405.04434). `query_rank` None: full queries.
    """

    kv_rank: int
    rope_width: int
    value_width: int
    query_rank: int | None = None


class Window(Record):
    """Attention to the last `size` positions only, but in every `full_every`-th layer to all."""

    size: int
    full_every: int | None = None


Positions = Learned | Rotary | Alibi | Relative
Norm = LayerNorm | RMSNorm
FeedForward = GELU | ReLU | SquaredReLU | SwiGLU | GeGLU | ClampedSwiGLU
Norms = Literal["before", "behind", "both", "stream", "shared", "apart"]
"""Where a block's norms stand, f its attention or feed-forward. One after the other: before,
x + f(norm x); behind, x + norm(f x), as OLMo 2; both, x + norm(f(norm x)), as Gemma 2; stream,
norm(x + f x), as BERT. Side by side: shared, behind one norm, or apart, behind a norm each."""
