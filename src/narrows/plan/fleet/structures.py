"""All structures of a model over a fleet: sizes of the axes, pieces of a stage and micro-batches,
as shape, devices and batch allow; and each with every way to shard and to recompute.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from narrows.plan.family import divisors
from narrows.plan.fleet.spreads import ARRAYS, CHOICES, RECOMPUTES, SHARDINGS, Spreads
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Fleet

_PIECES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 20)
_TENSOR_MOST, _MICRO_MOST, _POSITIONS_LEAST = 64, 64, 1024

Counts = npt.NDArray[np.int64]
Rows = dict[str, Counts]
"""Columns of equal length by the name of what they count."""


def candidates(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> Spreads:
    """All layouts that the model's shape, the devices and the batch allow.

    Raises BadInput where there is none.
    """
    known = structures(work, fleet, batch, wanted)
    pairs = choices(wanted)
    every = {name: np.repeat(getattr(known, name), len(pairs)) for name in ARRAYS}
    every["sharding"] = np.tile(np.array([float(sharding) for sharding, _ in pairs]), known.size)
    every["recompute"] = np.tile(np.array([float(again) for _, again in pairs]), known.size)
    return Spreads(shared=known.shared, **every)


def choices(wanted: Wanted) -> list[tuple[int, int]]:
    """How each structure is sharded and recomputed, by their places in CHOICES."""
    # Doing norms and activations again is a variant; the others differ too much to be one.
    recomputes = RECOMPUTES[:3] if wanted.recompute is None else (wanted.recompute,)
    shardings = SHARDINGS if wanted.sharding is None else (wanted.sharding,)
    return [
        (CHOICES["sharding"].index(sharding), CHOICES["recompute"].index(recompute))
        for sharding, recompute in itertools.product(shardings, recomputes)
    ]


def structures(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> Spreads:
    """Each structure once, with nothing sharded and nothing recomputed.

    Raises BadInput where there is none.
    """
    rows = _spread(_axes(work, fleet, batch, wanted), work, wanted)
    rows = _copied(_micros(rows, batch, wanted), fleet)
    rows = _pieces(rows, work, wanted)
    size = len(rows["tensor"])
    if not size:
        raise _refusal(work, fleet, batch, wanted)
    fixed = {
        name: np.full(size, float(known.index(given)) if given is not None else usual)
        for name, known in CHOICES.items()
        if name not in ("sharding", "recompute")
        for given, usual in [(getattr(wanted, name), float(name == "reshard"))]
    }
    # Pieces beyond the layers are those of the embedding and the head.
    ends = rows["pipeline"] * rows["interleave"] > work.layers + _fewer(wanted)
    fewer = {
        name: np.where(ends, 1.0, float(getattr(wanted, name) or 0))
        for name in ("first_fewer", "last_fewer")
    }
    zeros = {name: np.zeros(size) for name in ("sharding", "recompute")}
    counts = {name: column.astype(float) for name, column in rows.items()}
    return Spreads(shared=wanted.shared, **counts, **fixed, **fewer, **zeros)


def _axes(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> Rows:
    """Tensor, context and pipeline ranks, and what they leave to the data: `ranks`, copies of a
    sharded set included.
    """
    spec, devices = work.spec, fleet.devices
    # All of a node, though bridges may join only two of its devices.
    node = max(fleet.domains[0].devices, fleet.devices_per_node)
    most = min(_TENSOR_MOST, devices, node)
    tensors = _options(wanted.tensor, [t for t in _powers(most) if spec.heads % t == 0])
    longest = max(1, work.positions // _POSITIONS_LEAST)
    contexts = _options(wanted.context, _powers(min(devices, longest)))
    found = [
        (t, c, p, devices // (t * c * p))
        for t, c in itertools.product(tensors, contexts)
        if devices % (t * c) == 0 and spec.heads % t == 0
        for p in _options(wanted.pipeline, divisors(devices // (t * c)))
        if devices % (t * c * p) == 0 and p <= work.layers and batch % (devices // (t * c * p)) == 0
    ]
    columns = np.array(found, dtype=np.int64).reshape(-1, 4).T
    return dict(zip(("tensor", "context", "pipeline", "ranks"), columns, strict=True))


def _crossed(rows: Rows, name: str, options: Counts, fine: npt.NDArray[np.bool_]) -> Rows:
    """Each row with each of the options that are `fine` [rows, options] for it."""
    row, option = np.nonzero(fine)
    return {**{known: column[row] for known, column in rows.items()}, name: options[option]}


def _spread(rows: Rows, work: Work, wanted: Wanted) -> Rows:
    """Ranks among which experts are spread."""
    count = work.spec.experts.count if work.spec.experts else 1
    options = np.array(_options(wanted.expert, divisors(count)))
    fine = (rows["ranks"] * rows["tensor"])[:, None] % options == 0
    if wanted.expert is not None:
        fine = np.broadcast_to(count % options == 0, fine.shape)
    return _crossed(rows, "expert", options, fine)


def _micros(rows: Rows, batch: int, wanted: Wanted) -> Rows:
    """Sequences at once, and how often a step."""
    own = batch // rows["ranks"]
    options = np.array(_options(wanted.micro_batch, [*range(1, _MICRO_MOST + 1)]))
    found = _crossed(rows, "micro_batch", options, own[:, None] % options == 0)
    return {**found, "accumulation": batch // (found["ranks"] * found["micro_batch"])}


def _copied(rows: Rows, fleet: Fleet) -> Rows:
    """The sharded set not repeated, or so that a set is whole nodes."""
    options = np.array(divisors(fleet.devices))
    ranks, inside = rows["ranks"][:, None], (rows["context"] * rows["tensor"])[:, None]
    own = ranks // options
    whole = (ranks % options == 0) & (own * inside % fleet.domains[0].devices == 0)
    fine = ((options == 1) | whole) & (own * inside % rows["expert"][:, None] == 0)
    found = _crossed(rows, "replicas", options, fine)
    ranks = found.pop("ranks")
    return {**found, "data": ranks // found["replicas"]}


def _pieces(rows: Rows, work: Work, wanted: Wanted) -> Rows:
    """Into how many a stage is cut; more than one take turns only where the micro-batches fill the
    pipeline.
    """
    layers, stages = int(work.layers), rows["pipeline"]
    options = np.array(sorted({1, 2, *_PIECES, wanted.interleave or 1}))
    cut = np.zeros((layers + 1, len(options)), dtype=bool)
    for p in set(stages.tolist()):
        cut[p] = np.isin(options, _cuts(layers, p, wanted))
    full = (options == 1) | (rows["accumulation"] % stages == 0)[:, None]
    fine = cut[stages] & (full | (wanted.schedule == "zero_bubble"))
    return _crossed(rows, "interleave", options, fine)


def _cuts(layers: int, stages: int, wanted: Wanted) -> list[int]:
    fewest = max(wanted.first_fewer or 0, wanted.last_fewer or 0)
    if fewest and stages == 1:
        return []
    share = (layers + _fewer(wanted)) // stages
    return [v for v in _cuts_alike(layers, stages, wanted) if share // v >= fewest]


def _cuts_alike(layers: int, stages: int, wanted: Wanted) -> list[int]:
    """Before it is asked whether a piece has as many layers as the ends are told to be without."""
    most = _pieces_most(layers, wanted) // stages
    if wanted.schedule == "gpipe" or stages == 1:
        whole = wanted.interleave in (None, 1) and wanted.schedule != "zero_bubble"
        return [1] if whole else []
    if wanted.schedule == "zero_bubble":
        return [2] if most >= 2 else []
    if wanted.interleave is not None:
        return [wanted.interleave] if wanted.interleave <= most else []
    return [1, *(v for v in _PIECES if v <= most and _even(layers, stages * v))]


def _pieces_most(layers: int, wanted: Wanted) -> int:
    """Each has a layer, but the first the embedding alone and the last the head, where both may."""
    free = wanted.first_fewer is None and wanted.last_fewer is None
    return layers + (2 if free else _fewer(wanted))


def _even(layers: int, pieces: int) -> bool:
    """Whether the layers, alone or with the embedding and the head as two more, fill the pieces."""
    return layers % pieces == 0 or (layers + 2) % pieces == 0


def _fewer(wanted: Wanted) -> int:
    """Layers that the first stage and the last are told to have fewer than their shares."""
    return (wanted.first_fewer or 0) + (wanted.last_fewer or 0)


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length())]


def _options(fixed: int | None, free: list[int]) -> list[int]:
    return free if fixed is None else [fixed]


def _refusal(work: Work, fleet: Fleet, batch: int, wanted: Wanted) -> BadInput:
    spec, t, p, layers = work.spec, wanted.tensor, wanted.pipeline, int(work.layers)
    if t is not None and spec.heads % t:
        near = ", ".join(str(d) for d in divisors(spec.heads) if fleet.devices % d == 0)
        return BadInput(
            f"{spec.heads} heads cannot be divided among {t} tensor ranks",
            hint=f"--set layout.tensor=N with N one of {near}",
        )
    if p is not None and p > layers:
        return BadInput(
            f"{layers} layers do not fill {p} pipeline stages",
            hint=f"--set layout.pipeline=N with N at most {layers}",
        )
    if refusal := _pieces_refusal(layers, p if fleet.devices > 1 else 1, wanted):
        return refusal
    fixed = (t or 1) * (p or 1) * (wanted.context or 1)
    if fleet.devices % fixed:
        return BadInput(
            f"{fleet.devices} devices cannot be divided into groups of {fixed}",
            hint="choose tensor, pipeline and context whose product divides the devices",
        )
    if wanted.expert is not None and (refusal := _experts_refusal(work, fleet, wanted.expert, p)):
        return refusal
    ranks, micro = fleet.devices // fixed, wanted.micro_batch or 1
    size = f" in micro-batches of {micro}" if micro > 1 else ""
    return BadInput(
        f"a batch of {batch} sequences cannot be divided among {ranks} data ranks{size}",
        hint=f"a batch that is a multiple of {ranks * micro}, or more tensor or pipeline ranks",
    )


def _pieces_refusal(layers: int, stages: int | None, wanted: Wanted) -> BadInput | None:
    v = 2 if wanted.schedule == "zero_bubble" else wanted.interleave or 1
    fewest = max(wanted.first_fewer or 0, wanted.last_fewer or 0)
    if (layers + _fewer(wanted)) // (stages or 2) // v < fewest or (fewest and stages == 1):
        return BadInput(
            f"a stage of {layers} layers in {stages or 2} cannot have {fewest} fewer",
            hint="lower layout.first_fewer and last_fewer, or leave them out",
        )
    if v == 1:
        return None
    what = f"{wanted.schedule} pipeline" if wanted.schedule else "pipeline whose stages are cut"
    if stages == 1:
        return BadInput(
            f"a {what.replace('_', '-')} needs stages, and layout.pipeline is 1",
            hint=f"--set layout.pipeline=2 on two devices or more, or leave layout."
            f"{'schedule' if wanted.schedule else 'interleave'} out",
        )
    least = stages or 2
    if v * least > _pieces_most(layers, wanted):
        return BadInput(
            f"{layers} layers do not fill {v * least} pieces, {v} in each of {least} stages",
            hint=f"layout.pipeline · layout.interleave at most {layers}",
        )
    return None


def _experts_refusal(work: Work, fleet: Fleet, expert: int, stages: int | None) -> BadInput | None:
    if work.spec.experts is None and expert > 1:
        return BadInput(
            f"a model without experts cannot spread them over {expert} ranks",
            hint="leave layout.expert out",
        )
    count = work.spec.experts.count if work.spec.experts else 1
    ranks = fleet.devices // (stages or 1)
    if count % expert == 0 and ranks % expert == 0:
        return None
    near = ", ".join(str(d) for d in divisors(count) if ranks % d == 0)
    return BadInput(
        f"{count} experts cannot be spread over {expert} of {ranks} ranks",
        hint=f"--set layout.expert=N with N one of {near}",
    )
