"""Whether what was written is the model: read back, and compared in all that it says.

    source ── ours ──┐        tokens, the rendered template, where texts end,
    written ─ ours ──┼──→     logits and perplexity of a passage: the first difference
    written ─ reference ┘     is the end of the export

Two questions, two tolerances. Does the reference reader see what ours does? To 1e-4. Is what we
see the model that was to be written? To 1e-4 where its type holds the values exactly, and to what
the type is known to cost where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.data.published import Words
from narrows.data.samples import CONVERSATION, PASSAGE, TEXTS
from narrows.infer import reference
from narrows.infer.reference import Seen, texts_of
from narrows.infer.source import Source, source
from narrows.kernels.load import load
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.model import ModelSpec

POSITIONS = 128
EXACT = 1e-4
"""Of the largest logit, and at least of 1: how far two correct programs may be apart in fp32."""


class Cost(NamedTuple):
    """What rounding to a type may cost: the error of the logits as a share of their own spread, and
    the change of the perplexity as a share of it.
    """

    logits: float
    perplexity: float


COSTS = {
    "f16": Cost(0.01, 0.01), "bf16": Cost(0.05, 0.02),
    "q8_0": Cost(0.1, 0.03), "q4_1": Cost(0.6, 0.3), "q4_0": Cost(0.6, 0.3),
}  # fmt: skip


class Parity(NamedTuple):
    """What the comparison gave: who read, over how many tokens of how many texts, whether a
    template was rendered; of the logits the largest, and the largest difference from the source's
    and between the readers; and the perplexity before and after, of models that write.
    """

    readers: tuple[str, ...]
    texts: int
    tokens: int
    template: bool
    largest: float
    difference: float
    difference_readers: float | None
    perplexity: tuple[float, float] | None


def compare(given: Source, written: Path, type: str, to: Path) -> Parity:
    """Read `written` back by our own reader and, where it is installed, by the reference; raises
    RunFailed with the first difference.
    """
    ids = _ids(given)
    before = _seen(given, ids)
    again = source(written)
    if wrong := _other_shape(given.spec, again.spec):
        raise _refused(to, wrong)
    if given.labels != again.labels:
        raise _refused(to, f"the labels were {given.labels} and are {again.labels}")
    after = _seen(again, ids)
    exact = _exact(given, type)
    wrong = _words_lost(before, after) or _words_differ(before, after)
    if wrong := wrong or _numbers_differ(before, after, type, exact):
        raise _refused(to, f"read back by narrows, {wrong}")
    other = reference.seen(written, again, ids)
    readers: tuple[str, ...] = ("narrows",)
    between = None
    if other is not None:
        readers = (*readers, other.by)
        if wrong := other.wrong or _words_differ(after, other) or _apart(after, other):
            raise _refused(to, f"read back by {other.by}, {wrong}")
        if other.logits_TX is not None:
            between = _largest(after, other)
    perplexity = None
    if before.loss is not None and after.loss is not None:
        perplexity = (perplexity_of(before.loss), perplexity_of(after.loss))
    assert before.logits_TX is not None
    return Parity(
        readers, len(before.tokens), sum(map(len, before.tokens.values())),
        before.rendered is not None, float(before.logits_TX.abs().max()),
        _largest(before, after), between, perplexity,
    )  # fmt: skip


def _seen(given: Source, ids: list[int]) -> Seen:
    """By our own reader, computed in fp32."""
    tokens, rendered = ({}, None) if given.words is None else _told(given.words)
    logits_TX = _computed(given, ids)
    ends = frozenset[int]() if given.words is None else given.words.tokenizer.ends
    writes = given.spec.writes and not given.spec.classes
    loss = loss_of(logits_TX, ids) if writes else None
    return Seen("narrows", tokens, rendered, ends, logits_TX, loss)


def _told(words: Words) -> tuple[dict[str, list[int]], str | None]:
    """The tokens of each text, and of the conversation as the template renders it."""
    tokenizer = words.tokenizer
    tokens = {text: [*tokenizer.begin, *tokenizer.encode(text), *tokenizer.close] for text in TEXTS}
    if words.template is None:
        return tokens, None
    rendered = _rendered(words)
    return {**tokens, rendered: tokenizer.encode(rendered, special=True)}, rendered


def _rendered(words: Words) -> str:
    """The conversation; only its first turn where the template knows no others."""
    assert words.template is not None
    try:
        return words.template.render(CONVERSATION)
    except BadInput:
        return words.template.render(CONVERSATION[:1])


def _ids(given: Source) -> list[int]:
    """Tokens to compute with, which exercise the model: of the passage, else any."""
    spec = given.spec
    count = min(POSITIONS, spec.context)
    if given.words is None:
        return [(3 + 7 * place) % spec.vocabulary for place in range(count)]
    tokenizer = given.words.tokenizer
    return [*tokenizer.begin, *tokenizer.encode(PASSAGE)][:count]


@torch.no_grad()
def _computed(given: Source, ids: list[int]) -> Tensor:
    """Logits, of an encoder its last hidden states [T, V or D], or what a head says of texts."""
    spec = given.spec
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    model = model.to(torch.float32).to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(given.weights[name])
    tokens_BT = torch.tensor([ids])
    if spec.encoder_layers:
        return model(tokens_BT, tokens_BT)[0]
    if spec.classes:
        summaries = [model.summary(model.hidden(each)[0]) for each in texts_of(tokens_BT)]
        return model.scores(torch.stack(summaries))
    says = spec.writes or spec.head_transform
    return (model(tokens_BT) if says else model.hidden(tokens_BT))[0]


def loss_of(logits_TV: Tensor, ids: list[int]) -> float:
    """The mean loss of each token after those before it."""
    return float(F.cross_entropy(logits_TV[:-1], torch.tensor(ids[1:])))


def perplexity_of(loss: float) -> float:
    """Infinite where a model diverged so far that no number holds it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _exact(given: Source, type: str) -> bool:
    """Whether the type holds all that the weights' own does, or they were rounded to it before."""
    same = ((torch.float16, "f16"), (torch.bfloat16, "bf16"))
    kept = (given.dtype, type) in same and not given.changed
    return type == "f32" or kept or bool(given.groups)


def _other_shape(spec: ModelSpec, again: ModelSpec) -> str | None:
    """The first key of the spec that came back otherwise, dropout aside."""
    for key in spec.__struct_fields__:
        one, other = getattr(spec, key), getattr(again, key)
        window = key == "window" and one is not None and one.size >= spec.context
        if one != other and key != "dropout" and not window:
            return f"model.{key} was {one} and is {other}"
    return None


def _words_lost(one: Seen, other: Seen) -> str | None:
    """What came back without a tokenizer or a template, which nothing else would notice."""
    if bool(one.tokens) != bool(other.tokens):
        return "the tokenizer is gone"
    return "the template is gone" if one.rendered and other.rendered is None else None


def _words_differ(one: Seen, other: Seen) -> str | None:
    if one.rendered != other.rendered and other.rendered is not None:
        at = _first(one.rendered or "", other.rendered)
        pair = [(each or "")[at : at + 40] for each in (one.rendered, other.rendered)]
        return f"the template renders {pair[1]!r} at {at}, and not {pair[0]!r}"
    for text, tokens in other.tokens.items():
        if (own := one.tokens[text]) != tokens:
            at = _first(own, tokens)
            number, wanted = tokens[at : at + 1], own[at : at + 1]
            return (f"{text[:60]!r} is {len(tokens)} tokens, of which number {at} is {number}, "
                    f"and not {len(own)} with {wanted}")  # fmt: skip
    if other.ends is not None and one.ends != other.ends:
        return f"texts end at {sorted(other.ends)}, and not at {sorted(one.ends or ())}"
    return None


def _numbers_differ(before: Seen, after: Seen, type: str, exact: bool) -> str | None:
    if exact:
        return _apart(before, after)
    assert before.logits_TX is not None and after.logits_TX is not None
    cost = COSTS[type]
    error = (after.logits_TX - before.logits_TX).square().mean().sqrt()
    share = float(error / before.logits_TX.std())
    if not share <= cost.logits:
        return f"logits are off by {share:.2g} of their spread, and {type} may cost {cost.logits}"
    if before.loss is None or after.loss is None:
        return None
    change = abs(perplexity_of(after.loss - before.loss) - 1.0)
    if not change <= cost.perplexity:
        pair = perplexity_of(after.loss), perplexity_of(before.loss)
        return (f"perplexity is {pair[0]:.4g} after {pair[1]:.4g}, and {type} may change it by "
                f"{cost.perplexity:.0%}")  # fmt: skip
    return None


def _apart(one: Seen, other: Seen) -> str | None:
    """Logits further apart than correct programs are."""
    if one.logits_TX is None or other.logits_TX is None:
        return None
    if one.logits_TX.shape != other.logits_TX.shape:
        return f"logits are {list(other.logits_TX.shape)}, and not {list(one.logits_TX.shape)}"
    largest = _largest(one, other)
    most = float(one.logits_TX.abs().max())
    if not largest <= EXACT * max(1.0, most):
        where = int((one.logits_TX - other.logits_TX).abs().amax(1).argmax())
        return f"logits differ by {largest:.2g}, of {most:.3g} at most, at position {where}"
    return None


def _largest(one: Seen, other: Seen) -> float:
    assert one.logits_TX is not None and other.logits_TX is not None
    return float((one.logits_TX - other.logits_TX).abs().max())


def _first(one: Sequence[object], other: Sequence[object]) -> int:
    """Where two sequences part."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _refused(to: Path, wrong: str) -> RunFailed:
    return RunFailed(
        f"{to} was not kept: {wrong}",
        hint="export in another format or type, and tell us: the files are the model's own",
    )
