"""A plan beside its trace: one rank's step on paper and as it runs, and why the two differ.

Each reason is something that `parallel` does and the plan leaves out or does otherwise, with its
amount by formula: what is left when all of them are counted is unexplained.
"""

from __future__ import annotations

from collections.abc import Iterator

from narrows.plan.fleet import differences, remains, traffic
from narrows.plan.fleet.memory import memory_of
from narrows.plan.fleet.share import Rank
from narrows.plan.fleet.spreads import Spreads
from narrows.plan.fleet.work import Work
from narrows.spec.errors import BadInput
from narrows.spec.fleet import Spread
from narrows.spec.layout import Layout
from narrows.spec.trace import AxisName, Compared, Comparison, Reason, Trace, Traffic

_AXES: tuple[AxisName, ...] = ("tensor", "context", "expert", "pipeline", "data", "replicas")


def as_run(spread: Spread, positions: int) -> Layout:
    """The layout as processes run it; raises BadInput where nothing here runs it."""
    usual = Spread()
    for name in ("trained", "stored_bits", "offload", "state_bits", "flash_attention"):
        if getattr(spread, name) != getattr(usual, name):
            told = (
                "a model of which a part learns" if name == "trained" else f"a layout with {name}"
            )
            option = "--tune" if name == "trained" else f"layout.{name}"
            raise BadInput(f"{told} cannot be traced", hint=f"leave {option} out")
    if spread.precision not in ("bf16", "fp32"):
        raise BadInput(f"{spread.precision} cannot be traced", hint="--set layout.precision=bf16")
    if spread.recompute not in ("none", "full"):
        raise BadInput(
            f"recompute {spread.recompute} cannot be traced", hint="--set layout.recompute=none"
        )
    same = set(Layout.__struct_fields__) & set(Spread.__struct_fields__) - {"kernels"}
    tokens = spread.micro_batch * positions // spread.context
    return Layout(
        **{name: getattr(spread, name) for name in same}, compile=False, kernels="torch", threads=1,
        loss_chunk=min(tokens, 1024) if spread.chunked_loss else tokens,
    )  # fmt: skip


def ranks(spread: Spread) -> list[int]:
    """Of each kind of stage one rank: of the first, of the second, which keeps most of those in the
    middle, and of the last.
    """
    p = spread.pipeline
    return [stage * spread.devices // p for stage in sorted({0, min(1, p - 1), p - 1})]


def compare(name: str, work: Work, spread: Spread, trace: Trace) -> Comparison:
    """Every quantity that both know, of the model called `name`."""
    stage = trace.rank * spread.pipeline // spread.devices
    rank = Rank.of(work, spread, stage)
    rows = [_products(rank, trace), _scores(rank, trace)]
    on_paper = traffic.planned(work, spread, rank.stage)
    for axis in _AXES:
        row = _axis(rank, axis, on_paper, trace.traffic)
        if row is not None:
            rows.append(row)
    rows += _memory(rank, trace)
    return Comparison(model_name=name, spread=spread, trace=trace, rows=tuple(rows))


def _products(rank: Rank, trace: Trace) -> Compared:
    work, t, full = rank.work, rank.spread.tensor, rank.full
    spec = work.spec
    whole, cut = work.average_block(0.0)
    each = whole + cut / t
    if spec.experts is not None:
        chosen = spec.experts.chosen * sum(matrix.parameters for matrix in work.expert)
        each += work.layers_experts / work.layers * chosen / t
    head = 6.0 * spec.vocabulary * spec.width / t * rank.stage.ends
    planned = rank.tokens * (rank.layers * (6.0 + 2.0 * full) * each + head)
    reasons = []
    if full:
        down = 2.0 * rank.tokens * rank.dense * spec.width * spec.feed_forward_width / t
        reasons.append(Reason(name="a block's last product is not done again", amount=-down))
    if spec.experts is not None and t > 1:
        routed = sum(each.parameters for each in work.routed if each.cut == "whole")
        less = (6.0 + 2.0 * full) * rank.tokens * rank.routed * routed * (1.0 - 1.0 / t)
        reasons.append(Reason(name="each rank routes its piece of the sequence", amount=-less))
    return Compared(quantity="products", unit="FLOP", planned=planned, traced=trace.products,
                    reasons=tuple(reasons))  # fmt: skip


def _scores(rank: Rank, trace: Trace) -> Compared:
    work, spec = rank.work, rank.work.spec
    one = rank.tokens * rank.layers * work.score_flop / rank.spread.tensor
    planned = one * (3.5 + rank.full)
    T = float(work.positions)
    openly = spec.score_cap is not None or spec.sinks
    seen = [
        (T + 1.0) / 2.0 if spec.causal and spec.window_of(layer) is None and not openly else T
        for layer in range(spec.layers)
    ]
    computed = planned * (sum(seen) / len(seen) / work.keys - 1.0)
    name = "a query meets itself, and masks do not spare the computing of what they hide"
    reasons = [Reason(name=name, amount=computed)]
    if openly:
        again = -0.5 * one * T / work.keys
        reasons.append(Reason(name="scores lie in memory and are not made again", amount=again))
    return Compared(quantity="scores", unit="FLOP", planned=planned, traced=trace.scores,
                    reasons=tuple(reasons))  # fmt: skip


def _axis(
    rank: Rank, axis: AxisName, planned: tuple[Traffic, ...], traced: tuple[Traffic, ...]
) -> Compared | None:
    paper, metal = ([each for each in side if each.axis == axis] for side in (planned, traced))
    if not paper and not metal:
        return None
    reasons = getattr(differences, axis)(rank)
    return Compared(
        quantity=f"{axis} ranks", unit="B", planned=sum(each.bytes for each in paper),
        traced=sum(each.bytes for each in metal), planned_count=_count(paper),
        traced_count=_count(metal),
        reasons=tuple(each for each in reasons if each.amount or each.count),
    )  # fmt: skip


def _count(several: list[Traffic]) -> float:
    return sum(each.count * (2.0 if each.kind == "sum" else 1.0) for each in several)


def _memory(rank: Rank, trace: Trace) -> Iterator[Compared]:
    held = memory_of(rank.work, Spreads.of([rank.spread]), rank.stage.kind).record(0)
    found, most = trace.memory, trace.most
    whole = rank.spread.sharding != "parameters"
    gathered = most.get("workspace", 0.0) if whole else 0.0
    arriving = 0.0 if whole else found.workspace
    rows = (
        ("weights", held.weights, found.weights + gathered, remains.weights(rank)),
        ("gradients", held.gradients, most.get("gradients", 0.0), remains.gradients(rank)),
        ("optimizer", held.masters + held.optimizer, found.optimizer, remains.optimizer(rank)),
        ("what comes and goes", held.activations + held.logits + held.workspace,
         found.activations + arriving, remains.transient(rank, held)),
    )  # fmt: skip
    for name, planned, traced, reasons in rows:
        yield Compared(
            quantity=name, unit="B", planned=planned, traced=traced,
            reasons=tuple(each for each in reasons if each.amount),
        )  # fmt: skip
