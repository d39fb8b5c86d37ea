"""Many layouts of one step at once: one array per choice, so that a search is a few array sums."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from narrows.plan.trained import Trained
from narrows.spec.adapter import EVERYTHING, Learning
from narrows.spec.exchange import EXACT, GradientExchange
from narrows.spec.fleet import Offload
from narrows.spec.layout import RECOMPUTES, Layout
from narrows.spec.machine import KernelSet
from narrows.spec.model import LayerNorm, Learned, ModelSpec, Rotary
from narrows.spec.optimizer import USUAL, Optimizer

Array = npt.NDArray[np.float64]
TrainingPrecision = Literal["fp32", "bf16"]
SPREAD = tuple(each.name for each in msgspec.structs.fields(Layout) if not each.required)
"""What a layout says of several processes; a lone one has the defaults."""


class Judged(NamedTuple):
    """How an objective judges what a model says, beside one loss of its own logits: by what a
    `teacher` says of the same tokens, or with its own logits made once more (`twice`).
    """

    teacher: ModelSpec | None = None
    twice: bool = False


USUALLY = Judged()


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The choices that select a machine's curves; all layouts of one array share them."""

    precision: TrainingPrecision
    kernels: KernelSet
    compile: bool

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.precision == "bf16" else 4


class Layouts(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate layouts with one setting; every array has shape [layouts]. Of several processes
    they are all `spread` as that layout is, tell each other `gradients` so, and the arrays are
    those of one process. `recompute` is its place among RECOMPUTES. `optimizer` is what uses the
    gradients; what it keeps is `offload`ed to its `offload_folder`.
    """

    setting: Setting
    micro_batch: Array
    accumulation: Array
    recompute: Array
    threads: Array
    loss_chunk: Array
    spread: Layout | None = None
    gradients: GradientExchange = EXACT
    optimizer: Optimizer = USUAL
    offload: Offload = "none"
    offload_folder: str | None = None

    @classmethod
    def of(
        cls, layout: Layout, gradients: GradientExchange = EXACT, optimizer: Optimizer = USUAL
    ) -> Layouts:
        """A single layout as an array of one."""
        return cls(
            setting=Setting(
                precision=layout.precision, kernels=layout.kernels, compile=layout.compile
            ),
            micro_batch=np.array([float(layout.micro_batch)]),
            accumulation=np.array([float(layout.accumulation)]),
            recompute=np.array([float(RECOMPUTES.index(layout.recompute))]),
            threads=np.array([float(layout.threads)]),
            loss_chunk=np.array([float(layout.loss_chunk)]),
            spread=layout if layout.processes > 1 else None,
            gradients=gradients,
            optimizer=optimizer,
            offload=layout.offload,
            offload_folder=layout.offload_folder,
        )

    @property
    def full(self) -> Array:
        """1 where whole blocks are computed again."""
        return np.where(self.recompute == RECOMPUTES.index("full"), 1.0, 0.0)

    @property
    def selective(self) -> Array:
        """1 where all of a block but its products and attention is."""
        return np.where(self.recompute == RECOMPUTES.index("selective"), 1.0, 0.0)

    def those(self, kept: npt.NDArray[np.bool_]) -> Layouts:
        """Those of them where `kept`."""
        names = ("micro_batch", "accumulation", "recompute", "threads", "loss_chunk")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def layout(self, index: int) -> Layout:
        """The `index`-th candidate as a record."""
        own = Layout(
            micro_batch=int(self.micro_batch[index]),
            accumulation=int(self.accumulation[index]),
            precision=self.setting.precision,
            recompute=RECOMPUTES[int(self.recompute[index])],
            compile=self.setting.compile,
            kernels=self.setting.kernels,
            threads=int(self.threads[index]),
            loss_chunk=int(self.loss_chunk[index]),
            offload=self.offload,
            offload_folder=self.offload_folder,
        )
        if self.spread is None:
            return own
        spread = {name: getattr(self.spread, name) for name in SPREAD}
        return msgspec.structs.replace(own, **spread)


class Shapes(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Models of one kind; every array has shape [models, 1] and broadcasts against layouts. Norms
    and what else is not divided see a `sequence`-th part of the tokens; logits are made of a `said`
    part of them, which are `judged` so. Tokens attend within documents of `attended` tokens, where
    rows hold several. Of all models the same is `learning`, of their parameters as many as
    `parameters_trained`.
    """

    specs: tuple[ModelSpec, ...]

    layers: Array
    width: Array
    heads: Array
    kv_heads: Array
    head_width: Array
    feed_forward_width: Array
    qkv_width: Array
    up_width: Array
    vocabulary: Array
    context: Array
    parameters: Array
    rotary: bool
    learned: bool
    gated: bool
    causal: bool
    tied: bool
    biases: bool
    centred: bool
    dropout: bool
    parameters_trained: Array
    sequence: float = 1.0
    said: float = 1.0
    attended: float | None = None
    learning: Learning = EVERYTHING
    judged: Judged = USUALLY

    @classmethod
    def of(
        cls, models: Sequence[ModelSpec], *, said: float = 1.0, attended: float | None = None,
        learning: Learning = EVERYTHING, judged: Judged = USUALLY,
    ) -> Shapes:  # fmt: skip
        """Stack models that differ in sizes only; but for one all of them learns."""
        assert learning.everything or len(models) == 1

        def column(name: str) -> Array:
            return np.array([[float(getattr(model, name))] for model in models])

        first = models[0]
        return cls(
            specs=tuple(models),
            layers=column("layers"),
            width=column("width"),
            heads=column("heads"),
            kv_heads=column("kv_heads"),
            head_width=column("head_width"),
            feed_forward_width=column("feed_forward_width"),
            qkv_width=column("qkv_width"),
            up_width=column("up_width"),
            vocabulary=column("vocabulary"),
            context=column("context"),
            parameters=column("parameters"),
            rotary=isinstance(first.positions, Rotary),
            learned=isinstance(first.positions, Learned),
            gated=first.gated,
            causal=first.causal,
            tied=first.tied_embeddings and not first.classes,
            biases=first.biases,
            centred=isinstance(first.norm, LayerNorm),
            dropout=first.dropout > 0,
            parameters_trained=column("parameters")
            if learning.everything
            else np.array([[float(Trained(models[0], learning).parameters_trained)]]),
            learning=learning,
            said=0.0 if first.classes else said,
            attended=attended,
            judged=judged,
        )

    @cached_property
    def taught(self) -> Shapes | None:
        """The teacher, of rows as long as the model's."""
        if self.judged.teacher is None:
            return None
        context = int(self.context.flat[0])
        return Shapes.of([msgspec.structs.replace(self.judged.teacher, context=context)])

    @cached_property
    def trained(self) -> Trained:
        """What of the model learns; of several models, in each of their blocks."""
        return Trained(self.specs[0], self.learning)
