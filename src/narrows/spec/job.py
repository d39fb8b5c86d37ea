"""A job: what somebody wants, in ten lines. Everything absent is for the plan to decide."""

from __future__ import annotations

import re
from typing import Literal

from narrows.spec.adapter import Adapter, check_patterns
from narrows.spec.errors import BadInput
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.fleet import SIZES, Exchange, Offload, Schedule, Sharding
from narrows.spec.model import FeedForward, Norm, Positions
from narrows.spec.objective import NextToken, Objective, Pooling
from narrows.spec.optimizer import RULES, AdamW, Decayed, Rule, RuleName, StateBits
from narrows.spec.ramp import BatchRamp
from narrows.spec.record import Record, at_least
from narrows.spec.units import Dollars, Joules, Quantity, Seconds, Tokens

OnSpike = Literal["stop", "skip", "rollback"]
"""What a step is met with whose loss jumps or is no number: the end; nothing, its update left out;
or the newest checkpoint, from which training goes on with the data that follows.
"""

Shape = Literal["cosine", "wsd", "linear", "constant", "plateau"]
"""How the learning rate goes on after the warm-up."""

_ABSENT = ", or leave it out"


class Cleaning(Record):
    """Which filters run over the documents before tokenizing."""

    unicode: bool = True
    mojibake: bool = True
    length_min: int = 1
    repetition_max: float = 0.5
    duplicates: Literal["keep", "exact", "near"] = "near"


class DataSpec(Record):
    """Where the text comes from and how it becomes tokens.

    `corpus`: shakespeare, python, hf:NAME, or a file or folder. `tokenizer`: character, bpe,
    unigram, gpt2, or the path of a tokenizer.json. Rows of examples with more than `longest` tokens
    are left out.
    """

    corpus: str
    tokenizer: str = "bpe"
    vocabulary: int = 4096
    validation: float = 0.05
    longest: int | None = None
    text_field: str = "text"
    cleaning: Cleaning = Cleaning()
    workers: int | None = None

    def __post_init__(self) -> None:
        at_least(1, self, "data", "vocabulary", "workers", "longest", otherwise=_ABSENT)
        if not self.corpus.strip():
            raise BadInput("data.corpus is empty", hint='corpus = "shakespeare"')
        if not 0.0 < self.validation < 1.0:
            what = f"data.validation is {self.validation}"
            raise BadInput(what, hint="the share held back, such as 0.05")


class Budget(Record):
    """The dial: at most this much. Several given: the tightest binds."""

    time: Seconds | None = None
    energy: Joules | None = None
    money: Dollars | None = None
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value: Quantity | None = getattr(self, name)
            if value is not None and not 0.0 < value <= _BUDGET_MOST:
                raise BadInput(f"budget.{name} is {value}", hint=f'such as "{value.example}"')


_BUDGET_MOST = 1e24
"""Of seconds, joules, dollars and tokens: more than there is, and few enough to reckon with."""
_SHAPE = (
    "layers", "width", "heads", "kv_heads", "head_width", "feed_forward_width", "vocabulary",
    "positions", "norm", "feed_forward", "biases", "tied_embeddings", "causal",
)  # fmt: skip
"""What a model that training starts from has settled."""


class ModelIntent(Record):
    """What is fixed about the model; the rest follows the kind's habits, or is as it is in what to
    `start` from: a published model's folder, a GGUF file, or an earlier run.
    """

    start: str | None = None
    kind: Literal["gpt2", "llama"] = "llama"
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_width: int | None = None
    feed_forward_width: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    positions: Positions | None = None
    norm: Norm | None = None
    feed_forward: FeedForward | None = None
    biases: bool | None = None
    tied_embeddings: bool | None = None
    dropout: float = 0.0
    causal: bool | None = None
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        shaped = [name for name in _SHAPE if getattr(self, name) is not None]
        if self.start is not None and shaped:
            raise BadInput(
                f"model.{shaped[0]} is given, and model.start has one already",
                hint=f"leave out model.{shaped[0]}, or model.start",
            )
        at_least(
            1, self, "model", "layers", "width", "heads", "kv_heads", "head_width",
            "feed_forward_width", "vocabulary", "context",
            otherwise=_ABSENT,
        )  # fmt: skip
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"model.dropout is {self.dropout}", hint="use 0 <= dropout < 1")


class TrainIntent(Record):
    """What is fixed about the training. `epochs` of the data end it where nothing else does."""

    objective: Objective = NextToken()
    epochs: float | None = None
    steps: int | None = None
    batch_tokens: Tokens | None = None
    batch_sequences: int | None = None
    learning_rate: float | None = None
    schedule: Shape | None = None
    cycles: int = 1
    patience: int = 2
    shrink: float = 0.5
    warmup_steps: int | None = None
    optimizer: RuleName | Rule = AdamW()
    weight_decay: float | None = None
    decayed: Decayed = "matrices"
    undecayed: tuple[str, ...] = ()
    clip: float | None = None
    ema: float | None = None
    state_bits: StateBits = 32
    fused: bool = False
    evaluate_every: int | None = None
    evaluate_sequences: int | None = None
    checkpoint_every: int | None = None
    on_spike: OnSpike = "stop"
    batch_ramp: BatchRamp | None = None
    exchange: GradientExchange = EXACT
    adapter: Adapter | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(
            1, self, "train", "steps", "batch_tokens", "batch_sequences", "evaluate_every",
            "evaluate_sequences", "checkpoint_every", "cycles", "patience",
            otherwise=_ABSENT,
        )  # fmt: skip
        if self.epochs is not None and not 0.0 < self.epochs <= 1e6:
            raise BadInput(f"train.epochs is {self.epochs}", hint="such as 3")
        if self.learning_rate is not None and not 0.0 < self.learning_rate < 10.0:
            what = f"train.learning_rate is {self.learning_rate}"
            raise BadInput(what, hint="such as 0.001, or leave it out")
        for name in ("warmup_steps", "weight_decay", "clip"):
            if (getattr(self, name) or 0) < 0:
                raise BadInput(f"train.{name} is {getattr(self, name)}", hint="use 0 or more")
        for name in ("ema", "shrink"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise BadInput(f"train.{name} is {value}", hint="use more than 0 and less than 1")
        check_patterns(self.frozen)

    @property
    def rule(self) -> Rule:
        """The optimizer's; a name alone means its usual numbers."""
        asked = self.optimizer
        return RULES[asked]() if isinstance(asked, str) else asked


class LayoutIntent(Record):
    """Layout choices that somebody insists on; absent ones are searched. Of `processes` the plan
    chooses what axes they are on, but for those that are given.
    """

    processes: int | None = None
    micro_batch: int | None = None
    precision: Literal["fp32", "bf16"] | None = None
    recompute: Literal["none", "full", "selective"] | None = None
    compile: bool | None = None
    kernels: Literal["torch", "native"] | None = None
    threads: int | None = None
    loss_chunk: int | None = None
    data: int | None = None
    replicas: int | None = None
    tensor: int | None = None
    pipeline: int | None = None
    interleave: int | None = None
    context: int | None = None
    expert: int | None = None
    sharding: Sharding | None = None
    reshard: bool | None = None
    schedule: Schedule | None = None
    exchange: Exchange | None = None
    sequence_parallel: bool | None = None
    first_fewer: int | None = None
    last_fewer: int | None = None
    offload: Offload | None = None
    offload_folder: str | None = None

    def __post_init__(self) -> None:
        at_least(
            1, self, "layout", "processes", "micro_batch", "threads", "loss_chunk", *SIZES,
            otherwise=_ABSENT,
        )  # fmt: skip
        if self.processes is not None and self.processes % self.given:
            raise BadInput(
                f"the axes that layout gives take {self.given} processes, and layout.processes is "
                f"{self.processes}",
                hint=f"--set layout.processes={self.given}, or leave it out",
            )

    @property
    def batches(self) -> int:
        """Processes that read different sequences."""
        return (self.data or 1) * (self.replicas or 1)

    @property
    def given(self) -> int:
        """Processes that the axes take which are given."""
        return self.batches * (self.tensor or 1) * (self.pipeline or 1) * (self.context or 1)


class Job(Record):
    """The intent; `narrows plan` turns it into a Plan."""

    name: str
    seed: int = 0
    data: DataSpec | None = None
    model: ModelIntent = ModelIntent()
    train: TrainIntent = TrainIntent()
    layout: LayoutIntent = LayoutIntent()
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            what = f'the name "{self.name}" cannot name a run\'s folder'
            raise BadInput(what, hint="use letters, digits, dots, dashes and underscores")


def budget(*texts: str) -> Budget:
    """The budget that `texts` such as "5min", "0.4 kWh", "$20" or "20M tokens" add up to."""
    kinds = {"time": Seconds, "energy": Joules, "money": Dollars, "tokens": Tokens}
    fields: dict[str, Quantity] = {}
    for text in texts:
        meant = [(name, kind) for name, kind in kinds.items() if _is(kind, text)]
        if not meant:
            hint = 'a time "5min", energy "0.4 kWh", money "$20" or amount "20M tokens"'
            raise BadInput(f'"{text}" is no budget', hint=hint)
        name, kind = meant[0]
        if name in fields:
            raise BadInput(f"two budgets of {name}: {fields[name]} and {text}", hint="give one")
        fields[name] = kind.parse(text)
    return Budget(**fields)  # type: ignore[arg-type]


def _is(kind: type[Quantity], text: str) -> bool:
    try:
        kind.parse(text)
    except BadInput:
        return False
    return True
