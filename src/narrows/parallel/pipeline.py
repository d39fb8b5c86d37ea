"""Pipeline parallelism: micro-batches flow through the ranks' pieces by torch's schedules.

GPipe (arXiv:1811.06965), 1F1B (arXiv:2006.09503), its interleaved form (arXiv:2104.04473) and the
zero bubble in a V (arXiv:2401.10241, section 6). What a piece hands on is the stream with its last
addition added; under sequence parallelism each tensor rank hands on its own piece of the sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from narrows.model.transformer import Transformer
from narrows.parallel import data
from narrows.parallel.mesh import Ranks
from narrows.parallel.running import Beside, Loss, Rows
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout
from narrows.spec.pieces import Piece, rank_of

Compute = Callable[[Tensor, int, int], Tensor]


class Shape(NamedTuple):
    """Of a step: micro-batches, sequences of each, positions."""

    micros: int
    sequences: int
    positions: int


class Pipeline:
    """Runs the pieces that this process has. A schedule is made once for each shape of a step."""

    def __init__(
        self, model: Transformer, pieces: list[Piece], ranks: Ranks, layout: Layout
    ) -> None:
        refuse(layout, layout.accumulation)
        self.model, self.pieces, self.axis, self.layout = model, pieces, ranks.pipeline, layout
        self.beside = Beside()
        self._cut = ranks.tensor.size if layout.sequence_parallel else 1
        self.compute: Compute = model.piece  # type: ignore[assignment]
        self._schedules: dict[Shape, Any] = {}

    @property
    def made(self) -> dict[str, Any]:
        """How what pieces hand on is made."""
        first = next(self.model.parameters())
        return {"dtype": first.dtype, "device": first.device}

    def step(self, rows: Rows, loss: Loss, beside: Beside) -> Tensor:
        """Forward and backward; the sum of the losses on the rank that takes them, elsewhere 0.

        Whether gradients are there after a micro-batch depends on the piece; after all, they are.
        """
        sequences, positions = rows.inputs_BT.shape
        b = self.layout.micro_batch
        if sequences % b:
            raise BadInput(
                f"{sequences} sequences are no micro-batches of {b}, and a pipeline takes no other",
                hint=f"layout.micro_batch = a divisor of {sequences}",
            )
        shape = Shape(sequences // b, b, positions)
        if shape not in self._schedules:
            self._schedules[shape] = self._schedule(shape)
        self.beside = beside
        losses: list[Tensor] = []
        data.enter_pipeline(self.model, self.layout)
        self._schedules[shape].step(
            *([rows.inputs_BT] if self.pieces[0].first else []), losses=losses,
            target=rows.targets_BT if self.pieces[-1].last else None, return_outputs=False,
            loss_kwargs=loss._asdict(),
        )  # fmt: skip
        data.leave_pipeline(self.model)
        beside.after()
        return sum((each.detach() for each in losses), start=self._zero())

    def forward(self, rows: Rows, loss: Loss) -> Tensor:
        """The same without gradients; the last micro-batch may be smaller. A piece takes all of
        them before the rank's next one does.
        """
        micros, total = rows.micros(self.layout.micro_batch), self._zero()
        outputs: list[Tensor] = []
        sent: list[tuple[dist.Work | None, Tensor]] = []
        for which, piece in enumerate(self.pieces):
            given, outputs = [micro.inputs_BT for micro in micros] if piece.first else outputs, []
            for index, micro in enumerate(micros):
                x = given[index] if given else self._received(piece, micro.inputs_BT)
                out = self.compute(x, which, micro.inputs_BT.shape[1])
                if piece.last:
                    total += self.model.head_loss(out, micro.targets_BT, **loss._asdict())
                elif (next_rank := rank_of(piece.number + 1, self.layout)) == self.axis.rank:
                    outputs.append(out)
                else:
                    work = dist.isend(out, group=self.axis.group, group_dst=next_rank)
                    sent.append((work, out))
        for waiting, _ in sent:
            assert waiting is not None
            waiting.wait()
        data.reshard(self.model)
        return total

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float32, device=self.made["device"])

    def _received(self, piece: Piece, inputs_BT: Tensor) -> Tensor:
        sequences, positions = inputs_BT.shape
        x = torch.empty(self.stream(sequences, positions), **self.made)
        source = rank_of(piece.number - 1, self.layout)
        dist.recv(x, group=self.axis.group, group_src=source)
        return x

    def stream(self, sequences: int, positions: int) -> tuple[int, int, int]:
        """The shape of what pieces hand on."""
        return sequences, positions // self._cut, self.model.spec.width

    def _schedule(self, shape: Shape) -> Any:
        """Torch's schedule for micro-batches of that shape."""
        refuse(self.layout, shape.micros)
        stages = [_Stage(self, which, shape) for which in range(len(self.pieces))]
        given: dict[str, Any] = {
            "n_microbatches": shape.micros, "scale_grads": False, "loss_fn": self.model.head_loss
        }  # fmt: skip
        if self.layout.schedule == "gpipe":
            return ScheduleGPipe(stages[0], **given)
        if self.layout.schedule == "zero_bubble":
            return ScheduleZBVZeroBubble(list(stages), **given)
        if len(stages) == 1:
            return Schedule1F1B(stages[0], **given)
        return ScheduleInterleaved1F1B(list(stages), **given)


def refuse(layout: Layout, micros: int) -> None:
    """Raise BadInput where the schedule cannot run so many micro-batches."""
    p = layout.pipeline
    if layout.schedule != "gpipe" and micros < p:
        raise BadInput(
            f"{micros} micro-batches a step are too few for {p} stages",
            hint=f"layout.accumulation = {p} or more, with a smaller layout.micro_batch; or "
            "layout.schedule = gpipe",
        )
    if layout.schedule == "1f1b" and layout.interleave > 1 and micros % p:
        raise BadInput(
            f"{micros} micro-batches cannot go {p} at a time through interleaved pieces",
            hint=f"layout.accumulation = a multiple of {p}, or layout.interleave = 1",
        )


class _Computed(nn.Module):
    """A piece as torch's stages call it, with the parameters of all of the rank's.

    It is no FSDPModule, so that stages leave it to the modules' own hooks what is gathered when.
    """

    def __init__(self, pipeline: Pipeline, which: int, positions: int) -> None:
        super().__init__()
        self.model, self.pipeline = pipeline.model, pipeline
        self.which, self.positions = which, positions

    def forward(self, given: Tensor) -> Tensor:
        """The stream behind the piece; of the last, what logits are taken of."""
        return self.pipeline.compute(given, self.which, self.positions)


class _Stage(PipelineStage):
    """A piece in a schedule that does what a trainer does beside micro-batches.

    Torch's own keeps what it receives of every micro-batch of a step; this one as long as needed.
    """

    def __init__(self, pipeline: Pipeline, which: int, shape: Shape) -> None:
        self.pipeline, piece = pipeline, pipeline.pieces[which]
        self.stream = pipeline.stream(shape.sequences, shape.positions)
        dtype, device = pipeline.made["dtype"], pipeline.made["device"]
        x = torch.empty(self.stream, dtype=dtype, device="meta", requires_grad=True)
        tokens = torch.empty(shape.sequences, shape.positions, dtype=torch.long, device="meta")
        super().__init__(
            _Computed(pipeline, which, shape.positions), piece.number, piece.total, device,
            input_args=tokens if piece.first else x, output_args=x, group=pipeline.axis.group,
        )  # fmt: skip

    def forward_one_chunk(self, fwd_chunk_id: int, *given: Any, **named: Any) -> Any:
        """One micro-batch forward."""
        self.pipeline.beside.before(fwd_chunk_id)
        with self.pipeline.beside.span("forward"):
            return super().forward_one_chunk(fwd_chunk_id, *given, **named)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:  # fmt: skip
        """One micro-batch backward, or its input's gradient alone."""
        with self.pipeline.beside.span("backward"):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        self._drop(self.args_recv_info[bwd_chunk_id], self.grad_recv_info[bwd_chunk_id])
        if full_backward:
            self.pipeline.beside.after()

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """The gradients of weights, where the input's was taken alone."""
        with self.pipeline.beside.span("backward"):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        self.pipeline.beside.after()

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """What receives a micro-batch's stream."""
        self._make(self.args_recv_info[fwd_chunk_id])
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """What receives its gradient."""
        self._make(self.grad_recv_info[bwd_chunk_id])
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        super()._setup_forward_recv_info(num_microbatches, has_backward)
        self._drop(*self.args_recv_info.values())

    def _setup_backward_recv_info(self, num_microbatches: int) -> None:
        super()._setup_backward_recv_info(num_microbatches)
        self._drop(*self.grad_recv_info.values())

    def _make(self, received: tuple[Any, ...]) -> None:
        for each in received:
            if not each.is_root_arg:
                each.buffer = torch.empty(self.stream, **self.pipeline.made)

    def _drop(self, *received: tuple[Any, ...]) -> None:
        for each in itertools.chain(*received):
            each.buffer = None


def add_copies(gradient: Tensor, ranks: Ranks) -> None:
    """Of what the first rank and the last have alike, make both gradients the sum, in place."""
    axis = ranks.pipeline
    other = axis.size - 1 - axis.rank
    own, theirs = gradient.contiguous(), torch.empty_like(gradient)
    work = dist.isend(own, group=axis.group, group_dst=other)
    dist.recv(theirs, group=axis.group, group_src=other)
    assert work is not None
    work.wait()
    gradient.add_(theirs)
