"""A step of several processes: what each computes, what they tell each other, how long they wait.

One process of each pipeline stage is followed; of a step's micro-batches each stage takes as long
as its own operations and what it tells others between them; the stages then fill and drain.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from narrows.plan import cost
from narrows.plan.copying import copies
from narrows.plan.cost import AS_IS, Scales, block_factor, sum_seconds
from narrows.plan.exchange import Message, exchange
from narrows.plan.fleet import constants
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.stages import bubble, in_turn
from narrows.plan.gradients import kept_bytes
from narrows.plan.heap import Heap
from narrows.plan.layouts import Array, Layouts, Shapes
from narrows.plan.memory import Held, MemoryBytes, memory_bytes
from narrows.plan.network import Network
from narrows.plan.operation import Operation
from narrows.plan.operations import step_operations
from narrows.plan.optimizer import state_bytes
from narrows.plan.share import Group, Share
from narrows.spec.adapter import Learning
from narrows.spec.fleet import Spread
from narrows.spec.layout import Layout
from narrows.spec.ledger import Phase
from narrows.spec.machine import Machine

_BACKWARD_SHARE = 2.0 / 3.0
"""Of a micro-batch's products, those of its backward pass: two for one forward."""


class Told(NamedTuple):
    """A message and the seconds of all its collectives; whether they come with each micro-batch,
    and whether they are what stages hand on.
    """

    message: Message
    seconds: float
    often: bool
    hop: bool


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a pipeline, or the only one: a process's operations under each layout, as quick
    as they are while all compute, and what it tells others.
    """

    share: Share
    model: Shapes
    layouts: Layouts
    operations: tuple[Operation, ...]
    block: Array
    computing: Array
    micro: Array
    once: Array
    forward: Array
    told: tuple[tuple[Told, ...], ...]
    covered: Array

    def hidden(self, told: Told, index: int) -> float:
        """Of the seconds of something that this stage tells, those that computing hides."""
        if not told.message.hidden:
            return 0.0
        every = sum(e.seconds for e in self.told[index] if e.often and e.message.hidden)
        return float(self.covered[index]) * told.seconds / every if every else 0.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step under each layout, arrays [layouts]: of micro-batches through all stages,
    of which the slowest is at work a part and waits the rest; of activations on their way; and of
    what is done once.
    """

    stages: tuple[Stage, ...]
    scales: Scales
    running: Array
    working: Array
    hops: Array
    once: Array

    @property
    def seconds(self) -> Array:
        """The whole."""
        return np.asarray(self.running + self.hops + self.once)

    @property
    def telling(self) -> Array:
        """Of it, what the slowest stage tells others and waits for them."""
        computing = np.stack([stage.computing for stage in self.stages]).max(axis=0)
        return np.asarray(np.maximum(0.0, self.seconds - computing))

    def slowest(self, index: int) -> Stage:
        """Of one layout."""
        return max(self.stages, key=lambda stage: float(stage.micro[index]))


def step_seconds(
    model: Shapes, layouts: Layouts, machine: Machine, scales: Scales = AS_IS
) -> Array:
    """Seconds of one optimizer step, [models, layouts], of one process or of several."""
    if layouts.spread is None:
        return cost.step_seconds(model, layouts, machine, scales)
    return step(model, layouts, machine, scales).seconds[np.newaxis]


def evaluation_seconds(model: Shapes, layouts: Layouts, machine: Machine) -> Array:
    """Seconds of the forward pass of one micro-batch, [models, layouts]; of several processes that
    evaluate as many at once, its share of theirs.
    """
    if layouts.spread is None:
        return cost.evaluation_seconds(model, layouts, machine)
    found = step(model, layouts, machine)
    forward = np.stack([stage.forward for stage in found.stages]).sum(axis=0, keepdims=True)
    return np.asarray(forward / layouts.spread.batches)


def peak_bytes(model: Shapes, layouts: Layouts, machine: Machine) -> MemoryBytes:
    """Memory of `layouts` as this machine's past runs corrected it; of several processes, of the
    one that takes most.
    """
    heap, worn = Heap.of(machine), machine.calibration.get("activations", 1.0)
    if layouts.spread is None:
        return memory_bytes(model, layouts, heap, worn=worn)
    network = Network.of(layouts.spread, machine)
    peaks = []
    for share in _shares(model, layouts.spread):
        cut, own = _cut(model, layouts, share, network, machine)
        held = _held(share, layouts)
        found = memory_bytes(cut, own, heap, held, worn)
        more = kept_bytes(layouts.gradients) * share.kept
        peaks.append(msgspec.structs.replace(found, optimizer=found.optimizer + more))
    fullest = np.stack([each.peak for each in peaks]).argmax(axis=0)
    return MemoryBytes(
        **{
            name: np.choose(fullest, [getattr(each, name) for each in peaks])
            for name in MemoryBytes.__struct_fields__
        }
    )


def step(model: Shapes, layouts: Layouts, machine: Machine, scales: Scales = AS_IS) -> Step:
    """The step of one model under layouts of several processes."""
    spread = layouts.spread
    assert spread is not None and len(model.specs) == 1
    network = Network.of(spread, machine, scales)
    crowd = min(1.0, machine.device.threads * network.hosts / spread.processes)
    scales = replace(scales, launch=scales.launch * crowd)
    # Stages between the first and the last are mostly alike.
    known: dict[tuple[int, int, bool, bool], Stage] = {}
    stages = []
    for share in _shares(model, spread):
        key = len(share.blocks), share.kept, share.first, share.last
        if key not in known:
            known[key] = _stage(model, layouts, share, network, (machine, scales))
        stages.append(known[key])
    micros = np.stack([stage.micro for stage in stages])
    m, p = layouts.accumulation, spread.pipeline
    largest, whole = micros.max(axis=0), micros.sum(axis=0)
    running = m * largest
    if p > 1:
        alone = machine.device.threads / layouts.threads
        quicker = np.clip(alone / _slower(layouts, network, machine), 1.0 / p, 1.0)
        each = (whole - largest) / (p - 1)
        filling = bubble(_spreads(spread, m), each, each * _BACKWARD_SHARE / 2.0)
        running = _filled((m * largest, m * whole / p), filling, quicker, p)
    return Step(
        stages=tuple(stages), scales=scales, running=running,
        working=np.minimum(running, m * largest), hops=_hops(tuple(stages), network, m),
        once=np.stack([stage.once for stage in stages]).max(axis=0),
    )  # fmt: skip


def _filled(work: tuple[Array, Array], filling: Array, quicker: Array, p: int) -> Array:
    """Seconds of `work`, that of the slowest of p stages and the mean of them, and of `filling` and
    draining, where one stage alone takes `quicker` times as long as while all compute.

    Of fewer cores than stages, k stages' worth, none waits once k stages have something to do: work
    over k cores and a bubble of k stages. Exact for equal stages that share cores evenly under 1F1B
    and GPipe (tests/plan/test_together.py plays them through); no schedule is shorter than the
    slowest stage's own.
    """
    slowest, mean = work
    k = quicker * p
    shared = mean + (k - 1.0) / (p - 1.0) * quicker * filling
    return np.asarray(np.maximum(shared, quicker * (slowest + filling)))


def hosts(layout: Layout, machine: Machine) -> int:
    """Hosts that the layout's processes are on."""
    return Network.of(layout, machine).hosts


def usual_threads(layout: Layout, machine: Machine) -> int:
    """Threads of one process where all share what their hosts have."""
    return max(1, machine.device.threads * hosts(layout, machine) // layout.processes)


def _shares(model: Shapes, spread: Layout) -> list[Share]:
    """Of the first process of each stage."""
    each = spread.processes // spread.pipeline
    return [
        Share.of(model.specs[0], spread, stage * each, model.learning)
        for stage in range(spread.pipeline)
    ]


def _stage(
    model: Shapes, layouts: Layouts, share: Share, network: Network, on: tuple[Machine, Scales]
) -> Stage:
    machine, scales = on
    cut, own = _cut(model, layouts, share, network, machine)
    operations = (
        *step_operations(cut, own, first=share.first, last=share.last),
        *copies(share, own),
    )
    block = block_factor(cut, own, machine)

    def seconds(*phases: Phase) -> Array:
        chosen = (each for each in operations if each.phase in phases)
        row: Array = sum_seconds(chosen, own, machine, scales, block=block)[0]
        return row

    forward, m = seconds("forward"), layouts.accumulation
    told = _told(share, layouts, network, model.learning)
    often, once = (np.array(each) for each in zip(*map(_summed, told), strict=True))
    # Keys go around while queries meet those that are there.
    meeting = (each for each in operations if each.kind == "attention")
    hidden = np.minimum(
        np.array([_hidden(each, network) for each in told]),
        np.asarray(sum_seconds(meeting, own, machine, scales, block=block))[0],
    )
    computing = forward + seconds("backward", "data", "other")
    updating = seconds("optimizer")
    ahead = np.array([
        sum(each.seconds for each in one if each.message.phase == "forward" and each.often)
        for one in told
    ])  # fmt: skip
    return Stage(
        share=share, model=cut, layouts=own, operations=operations, block=block,
        computing=computing + updating, micro=(computing + often - hidden) / m,
        once=updating + once, forward=(forward + ahead) / m, told=told, covered=hidden,
    )  # fmt: skip


def _cut(
    model: Shapes, layouts: Layouts, share: Share, network: Network, machine: Machine
) -> tuple[Shapes, Layouts]:
    """What one process computes, and the threads that it has in effect while all do."""
    layout, t = share.layout, float(share.layout.tensor)
    spread = replace(
        model, layers=np.full((1, 1), float(len(share.blocks))), heads=model.heads / t,
        kv_heads=model.kv_heads / t, feed_forward_width=model.feed_forward_width / t,
        qkv_width=model.qkv_width / t, up_width=model.up_width / t,
        vocabulary=model.vocabulary / t, parameters=np.full((1, 1), float(share.kept)),
        parameters_trained=np.full((1, 1), float(share.kept)),
        sequence=t if layout.sequence_parallel else 1.0,
    )  # fmt: skip
    # A part of each sequence costs its part of the scores: as if there were fewer of them.
    micro = layouts.micro_batch / layout.context
    threads = machine.device.threads / _slower(layouts, network, machine)
    chunk = np.minimum(layouts.loss_chunk, micro * model.context[0, 0])
    return spread, replace(layouts, micro_batch=micro, threads=threads, loss_chunk=chunk)


def _slower(layouts: Layouts, network: Network, machine: Machine) -> Array:
    """How many times as long one process takes, while all compute, as one alone with all threads
    of a machine.
    """
    count = network.layout.processes
    usual = usual_threads(network.layout, machine)
    return np.asarray(count / network.together * usual / layouts.threads)


def _told(
    share: Share, layouts: Layouts, network: Network, learning: Learning
) -> tuple[tuple[Told, ...], ...]:
    """Of each layout. Many differ in nothing that is told: loss chunks, which only ranks that have
    parts of the vocabulary talk about.
    """
    rank = share.place.pipeline * (share.layout.processes // share.layout.pipeline)
    known: dict[tuple[int, bool, int], tuple[Told, ...]] = {}
    found = []
    for index in range(layouts.micro_batch.size):
        layout = layouts.layout(index)
        chunk = layout.loss_chunk if layout.tensor > 1 else 0
        key = layout.micro_batch, layout.recompute == "full", chunk
        if key not in known:
            known[key] = tuple(
                _taken(each, layout, network)
                for each in exchange(share.spec, layout, rank, layouts.gradients, learning)
            )
        found.append(known[key])
    return tuple(found)


def _taken(message: Message, layout: Layout, network: Network) -> Told:
    within = message.phase != "optimizer"
    hop = within and message.axis == "pipeline" and message.kind == "send"
    often = within and not hop and message.calls >= layout.accumulation
    return Told(message, message.calls * network.taken(message).seconds, often, hop)


def _summed(told: tuple[Told, ...]) -> tuple[float, float]:
    """Seconds that belong to micro-batches, and those that come once."""
    often = sum(each.seconds for each in told if each.often)
    once = sum(each.seconds for each in told if not (each.often or each.hop))
    return often, once


def _hidden(told: tuple[Told, ...], network: Network) -> float:
    """Seconds of hidden messages in which no process is at work on them."""
    return sum(
        each.seconds - each.message.calls * network.busy(each.message)
        for each in told if each.message.hidden and each.often
    )  # fmt: skip


def _hops(stages: tuple[Stage, ...], network: Network, m: Array) -> Array:
    """What activations and their gradients on their way add where stages wait for them."""
    p, v = network.layout.pipeline, network.layout.interleave
    if p == 1:
        return np.zeros_like(m)

    def one(phase: Phase) -> Array:
        return np.array([
            max((t.seconds / t.message.calls for stage in stages for t in stage.told[index]
                 if t.hop and t.message.phase == phase), default=0.0)
            for index in range(m.size)
        ])  # fmt: skip

    # One forward and one backward in turn, a stage waits for its neighbour's answer each time. So
    # do all where what is sent is asked for first: when the receiver has done what was before.
    shown = constants.HOPS_SHOWN * v if v > 1 and not network.asked else v
    there, back = one("forward"), one("backward")
    # Torch's 1F1B waits, as it fills, for what it sent before it goes on; its GPipe does not.
    filling = p - 1 if network.asked and (network.layout.schedule, v) == ("1f1b", 1) else 0
    return np.asarray(shown * (m + p - 2) * (there + back) + filling * there)


def _held(share: Share, layouts: Layouts) -> Held:
    layout, m = share.layout, layouts.accumulation
    dropped = layout.sharding == "parameters"
    gathered = 0.0
    if share.grouped and dropped:
        # In values of the layout's precision, however the frozen ones are kept.
        size = layouts.setting.value_bytes
        groups = sorted(_gathered(group, size) for group in share.blocks)
        gathered = sum(groups[-2:]) + _gathered(share.ends, size)
        if not layout.reshard:
            gathered = sum(groups) + _gathered(share.ends, size)
    value = layouts.setting.value_bytes
    return Held(
        frozen_bytes=share.frozen_bytes(value),
        whole=float(share.whole), kept=float(share.kept),
        state=state_bytes(share, layouts.optimizer),
        copied=share.grouped and not dropped, gathered=gathered,
        late=share.grouped and layout.sharding in ("none", "optimizer"),
        flight=_flight(share, m),
    )  # fmt: skip


def _gathered(group: Group, value_bytes: int) -> float:
    return sum(table.size * (table.packed or value_bytes) for table in group) / value_bytes


def _flight(share: Share, m: Array) -> Array:
    """Micro-batches whose activations a stage keeps at once (plan/fleet/stages.py)."""
    layout, stage = share.layout, share.place.pipeline
    p, v = layout.pipeline, layout.interleave
    if p == 1:
        return np.ones_like(m)
    if layout.schedule == "gpipe":
        return m
    if layout.schedule == "zero_bubble":
        return np.minimum(m, p)
    return np.minimum(m, in_turn(p, v, stage))


def _spreads(spread: Layout, m: Array) -> Spreads:
    found = Spreads.of([
        Spread(pipeline=spread.pipeline, interleave=spread.interleave, schedule=spread.schedule)
    ])  # fmt: skip
    return found.changed(accumulation=np.asarray(m, dtype=np.float64))
