"""Several processes on the machine at hand: what a layout asks of the model, and each one's share.

They divide the processors among them, and together compute what one process would: measured on two
cores, two processes of one thread are as quick as one of two. What they tell each other is not
predicted yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from narrows.spec.errors import BadInput
from narrows.spec.job import LayoutIntent
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec

_SPREAD = tuple(each.name for each in msgspec.structs.fields(Layout) if not each.required)
"""What a layout says of several processes; a lone one has the defaults."""


def check(intent: LayoutIntent, model: ModelSpec, batch: int) -> None:
    """Raises BadInput where a model or a batch cannot be divided as the intent says."""
    for what, count, name, ranks in _divisions(intent, model, batch):
        if count % ranks:
            raise BadInput(
                f"{count} {what} cannot be divided among {ranks}",
                hint=f"--set layout.{name}=N with N a divisor of {count}",
            )
    stages = (intent.pipeline or 1) * _pieces(intent)
    if stages > model.layers:
        raise BadInput(
            f"{model.layers} layers do not fill {stages} pieces of a pipeline",
            hint=f"--set layout.pipeline=N with N at most {model.layers}",
        )


def shared(layout: Layout, intent: LayoutIntent) -> Layout:
    """The layout of one process that does all, as each of the intent's processes has it."""
    if intent.processes == 1:
        return layout
    given = {name: value for name in _SPREAD if (value := getattr(intent, name)) is not None}
    return msgspec.structs.replace(
        layout,
        accumulation=layout.accumulation // intent.batches,
        threads=max(1, layout.threads // intent.processes),
        **{**given, "interleave": _pieces(intent)},
    )


def _pieces(intent: LayoutIntent) -> int:
    """Of a stage: a zero-bubble pipeline has two where nothing else was said."""
    return intent.interleave or (2 if intent.schedule == "zero_bubble" else 1)


def fewer(layout: Layout) -> Layout | None:
    """The same global batch on half the ranks that read different sequences, each with twice the
    micro-batches and threads; None where there is no half.
    """
    name = "replicas" if layout.replicas % 2 == 0 else "data"
    half, odd = divmod(getattr(layout, name), 2)
    if odd:
        return None
    smaller = msgspec.structs.replace(
        layout, **{name: half}, accumulation=2 * layout.accumulation, threads=2 * layout.threads
    )
    around = smaller.data * smaller.context * smaller.tensor
    expert = max(n for n in range(1, layout.expert + 1) if not (around % n or layout.expert % n))
    return msgspec.structs.replace(smaller, expert=expert)


def _divisions(
    intent: LayoutIntent, model: ModelSpec, batch: int
) -> Iterator[tuple[str, int, str, int]]:
    tensor, context = intent.tensor or 1, intent.context or 1
    yield "sequences of a batch", batch, "data", intent.batches
    yield "heads", model.heads, "tensor", tensor
    yield "kv_heads", model.kv_heads, "tensor", tensor
    yield "feed-forward columns", model.feed_forward_width, "tensor", tensor
    # Causal contexts are cut in two pieces a rank, and each of them among tensor ranks.
    yield "positions", model.context, "context", context * (2 if context > 1 else 1) * tensor
    experts = model.experts.count if model.experts else 1
    yield "experts", experts, "expert", intent.expert or 1
