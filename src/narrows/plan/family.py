"""Model shapes: what an intent leaves open is filled by the kind's habits; a dial's candidates."""

from __future__ import annotations

from narrows.spec.errors import BadInput
from narrows.spec.job import ModelIntent
from narrows.spec.model import (
    GELU,
    FeedForward,
    LayerNorm,
    Learned,
    ModelSpec,
    Norm,
    Positions,
    RMSNorm,
    Rotary,
    SwiGLU,
)

# Width over layers: 64 in GPT-2 and near it in most since. Kaplan et al. 2020 (arXiv:2001.08361,
# section 3.1): a 40-fold range of it changes the loss by less than a few percent.
ASPECT = 64
# GPT-2's head; narrow models halve it until they have three.
HEAD_WIDTH = 64
_HEADS_LEAST = 3
_WIDTHS = (
    *range(64, 513, 32), *range(576, 1025, 64), *range(1152, 2049, 128), *range(2304, 8193, 256),
)  # fmt: skip


def is_sized(intent: ModelIntent) -> bool:
    """Whether the intent says how large the model is; if not, the budget does."""
    return intent.width is not None or intent.layers is not None


def check(intent: ModelIntent) -> None:
    """Raises BadInput where sizes that are given contradict each other, whatever the text is."""
    if intent.start is None and is_sized(intent):
        resolve(intent, vocabulary=1, context=intent.context or 1)


def resolve(
    intent: ModelIntent, vocabulary: int, context: int, *, width: int | None = None
) -> tuple[ModelSpec, dict[str, str]]:
    """The model that `intent` asks for and, for each value that it left open, why.

    `width` is a dial's choice where the intent has no size. Raises BadInput where the sizes
    contradict each other.
    """
    why: dict[str, str] = {}
    layers = intent.layers
    width = intent.width or width
    if width is None:
        assert layers is not None, "an intent without a size belongs to the dial"
        width = layers * ASPECT
        why["model.width"] = f"{ASPECT} for each layer, as in GPT-2 (arXiv:2001.08361, 3.1)"
    if layers is None:
        layers = max(2, round(width / ASPECT))
        why["model.layers"] = f"one for each {ASPECT} of width, as in GPT-2 (arXiv:2001.08361, 3.1)"
    heads, head_width = _heads(intent, width, why)
    positions, norm, feed_forward = _choices(intent)
    gated = isinstance(feed_forward, SwiGLU)
    forward_width = intent.feed_forward_width
    if forward_width is None:
        forward_width = -(-8 * width // 3 // 32) * 32 if gated else 4 * width
        why["model.feed_forward_width"] = (
            "8/3 of the width, rounded up to 32s (arXiv:2002.05202)" if gated
            else "4 times the width (arXiv:1706.03762)"
        )  # fmt: skip
    gpt2 = intent.kind == "gpt2"
    model = ModelSpec(
        layers=layers, width=width, heads=heads, kv_heads=intent.kv_heads or heads,
        head_width=head_width, feed_forward_width=forward_width, vocabulary=vocabulary,
        context=context, positions=positions, norm=norm, feed_forward=feed_forward,
        biases=gpt2 if intent.biases is None else intent.biases,
        tied_embeddings=True if intent.tied_embeddings is None else intent.tied_embeddings,
        dropout=intent.dropout,
    )  # fmt: skip
    return model, why


def family(intent: ModelIntent, vocabulary: int, context: int) -> tuple[ModelSpec, ...]:
    """Models of the kind from tiny to huge, one for each width, by the same habits.

    Raises BadInput where what is fixed fits no width at all.
    """
    members: list[ModelSpec] = []
    refusal: BadInput | None = None
    for width in _WIDTHS:
        try:
            members.append(resolve(intent, vocabulary, context, width=width)[0])
        except BadInput as error:
            refusal = error
    if not members:
        assert refusal is not None
        raise refusal
    return tuple(members)


def _heads(intent: ModelIntent, width: int, why: dict[str, str]) -> tuple[int, int]:
    heads, head_width = intent.heads, intent.head_width
    if heads is not None and head_width is not None:
        return heads, head_width
    if heads is not None:
        if width % heads:
            near = ", ".join(str(each) for each in divisors(width) if width // each >= 16)
            raise BadInput(
                f"a width of {width} cannot be divided among {heads} heads",
                hint=f"use one of {near} heads, or give model.head_width",
            )
        return heads, width // heads
    if head_width is not None:
        if width % head_width:
            raise BadInput(
                f"a width of {width} is not a multiple of head_width {head_width}",
                hint="choose head_width that divides the width, or give model.heads",
            )
        return width // head_width, head_width
    for head_width in (HEAD_WIDTH, HEAD_WIDTH // 2, HEAD_WIDTH // 4):
        if width % head_width == 0 and width // head_width >= _HEADS_LEAST:
            break
    else:
        raise BadInput(
            f"a width of {width} has no habitual division into heads",
            hint="choose a multiple of 64, or give model.heads",
        )
    many = f"so that there are {_HEADS_LEAST} or more"
    reason = "as in GPT-2" if head_width == HEAD_WIDTH else many
    why["model.heads"] = f"heads of {head_width}, {reason}"
    return width // head_width, head_width


def _choices(intent: ModelIntent) -> tuple[Positions, Norm, FeedForward]:
    if intent.kind == "gpt2":
        return (
            intent.positions or Learned(), intent.norm or LayerNorm(),
            intent.feed_forward or GELU(),
        )  # fmt: skip
    return intent.positions or Rotary(), intent.norm or RMSNorm(), intent.feed_forward or SwiGLU()


def divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})
