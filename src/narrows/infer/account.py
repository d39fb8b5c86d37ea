"""What an answer took beside what was predicted of it: the first token, the others, memory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import final

from narrows.hardware.find import accelerators, fingerprint, threads
from narrows.hardware.probe import machine_known
from narrows.infer.generate import Writer, Written
from narrows.infer.packed import PackedWriter
from narrows.kernels.meter import MemoryMeter
from narrows.plan.answer import Question, predict_answer
from narrows.plan.packed import PackedQuestion, predict_packed
from narrows.plan.power import bill, watts
from narrows.spec.errors import BadInput
from narrows.spec.ledger import Ledger, MemoryPeak, Phase, Row, Total
from narrows.spec.machine import Machine
from narrows.spec.record import load
from narrows.spec.units import Bytes, Quantity, Seconds


@final
class Account:
    """To be opened before the model is loaded, whose memory counts. Where it is computed `by_torch`
    that library's own does not, as in training.
    """

    def __init__(self, run: Path, *, by_torch: bool = False) -> None:
        self._run = run
        if by_torch:
            import_module("torch")
        self._memory = MemoryMeter(device())

    def close(self, generator: Writer, generation: Written) -> tuple[Ledger | None, Ledger]:
        """Predicted, where this machine was probed, and measured, of a text that is written."""
        peak = self._memory.peak()
        machine = machine_known_for(self._run)
        predicted = None
        if machine is not None:
            counts = len(generation.prompt), len(generation.seconds)
            predicted = predicted_answer(generator, machine, *counts)
        if predicted is None:
            return None, _measured(generator, generation, peak, None, None)
        return predicted, _measured(generator, generation, peak, machine, predicted)


def device() -> str:
    """The kind that torch would compute on, which is not asked where no driver is loaded."""
    if not accelerators():
        return "cpu"
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def predicted_answer(
    writer: Writer, machine: Machine, prompt: int, tokens: int, sequences: int = 1
) -> Ledger | None:
    """So many tokens that go on from prompts of so many, of `sequences` at once; None where the
    machine was not probed for weights such as these.
    """
    precision = writer.precision
    if isinstance(writer, PackedWriter):
        packed = PackedQuestion(
            prompt=prompt, tokens=tokens, weight_bytes=float(writer.model.nbytes),
            sequences=sequences, cache=writer.cache, adapter_bytes=float(writer.adapter_bytes),
        )  # fmt: skip
        return predict_packed(writer.spec, packed, machine)
    assert precision == "fp32" or precision == "bf16", "torch computes no groups"
    # Records from before steps of few rows were timed have products alone.
    timed = machine.device.streamed or machine.device.matmul
    if not any(curve.precision == precision for curve in timed):
        return None
    asked = Question(
        prompt=prompt, tokens=tokens, precision=precision, sequences=sequences, fresh=True,
        cache=writer.cache,
    )  # fmt: skip
    return predict_answer(writer.spec, asked, machine)


def told(predicted: Ledger | None, measured: Ledger) -> str:
    """Both as lines of a table, and what to do where there is no prediction."""
    return table(_figures(predicted) if predicted else None, _figures(measured))


def table(predicted: Mapping[str, Quantity] | None, measured: Mapping[str, Quantity]) -> str:
    """The same figures, predicted where they were, and measured."""
    if predicted is None:
        lines = [f"{'':12}{'measured':>11}"]
        lines += [f"{name:12}{value.text():>11}" for name, value in measured.items()]
        return "\n".join([*lines, "to have it predicted too: narrows probe --refresh"])
    lines = [f"{'':12}{'predicted':>11}{'measured':>11}"]
    for name, value in measured.items():
        before = predicted[name]
        error = f"{before / value - 1.0:+8.0%}" if value else ""
        lines.append(f"{name:12}{before.text():>11}{value.text():>11}{error}")
    return "\n".join(lines)


def _figures(ledger: Ledger) -> dict[str, Quantity]:
    figures: dict[str, Quantity] = {"first token": Seconds(ledger.first_token_s)}
    if ledger.total.steps:
        figures["per token"] = Seconds(ledger.per_token_s)
    return {**figures, "memory": Bytes(ledger.memory.peak)}


def machine_known_for(run: Path) -> Machine | None:
    """The record of this machine: the kept one, else the run's where it was trained here."""
    known = machine_known()
    if known is not None:
        return known
    try:
        trained_on = load(Machine, run / "machine.toml")
    except BadInput:
        return None
    return trained_on if trained_on.fingerprint == fingerprint() else None


def _measured(
    generator: Writer, generation: Written, peak: float, machine: Machine | None,
    predicted: Ledger | None,
) -> Ledger:  # fmt: skip
    """Where it was predicted, FLOP and bytes are the prediction's; a token takes the median."""
    first, *rest = generation.seconds
    each = median(rest) if rest else 0.0
    rows = [_row("prefill", 1, first, machine, predicted)]
    if rest:
        rows.append(_row("decode", len(rest), len(rest) * each, machine, predicted))
    seconds, whole = sum(row.seconds for row in rows), sum(generation.seconds)
    joules = sum(row.joules for row in rows)
    cost = bill(machine, whole, joules / seconds) if machine else None
    return Ledger(
        basis="measured",
        energy_basis="estimated",
        rows=tuple(rows),
        step_seconds=seconds,
        step_tokens=float(len(generation.seconds)),
        mfu=predicted.mfu * predicted.step_seconds / seconds if predicted else 0.0,
        memory=_memory(generator, generation, peak),
        total=Total(
            steps=len(rest), tokens=float(len(generation.seconds)), seconds=whole,
            seconds_training=0.0, seconds_start=0.0, seconds_evaluating=0.0, seconds_saving=0.0,
            joules=cost.joules if cost else 0.0, dollars=cost.dollars if cost else 0.0,
            carbon_grams=cost.carbon_grams if cost else 0.0,
        ),
    )  # fmt: skip


def _row(
    phase: Phase, count: int, seconds: float, machine: Machine | None, predicted: Ledger | None
) -> Row:
    same = [row for row in predicted.rows if row.phase == phase] if predicted else []
    power = watts(machine, "gemm", threads()) if machine else 0.0
    return Row(
        operation=phase, phase=phase, kind="other", count=float(count),
        flop=sum(row.flop for row in same), memory_bytes=sum(row.memory_bytes for row in same),
        network_bytes=0.0, seconds=seconds, joules=seconds * power,
    )  # fmt: skip


def _memory(generator: Writer, generation: Written, peak: float) -> MemoryPeak:
    """What tensors hold is named, the rest is activations with all else; the tensors are the least,
    since a heap that was large before grows less than it holds.
    """
    weights = float(generator.weight_bytes)
    cache = float(generation.cache_bytes)
    peak = max(peak, weights + cache)
    return MemoryPeak(
        weights=weights, cache=cache, activations=peak - weights - cache, peak=peak
    )  # fmt: skip
