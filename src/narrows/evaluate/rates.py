"""How quickly models go on with a text here, in turn, beside what was predicted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from narrows.hardware.power import PowerMeter
from narrows.hardware.probe import machine_known
from narrows.infer.account import predicted_answer
from narrows.infer.generate import ServingPrecision, Writer
from narrows.infer.writer import load_writer
from narrows.spec.machine import Machine
from narrows.spec.record import Record

_PROMPT, _TOKENS, _TURNS = 32, 48, 3


class Rate(Record):
    """Tokens a second of one text, by the median token of several turns. What was predicted is None
    on a machine that was not probed for such weights.
    `joules_per_token` is None where no meter can be read.
    """

    precision: ServingPrecision
    threads: int
    tokens_per_s: float
    tokens_per_s_predicted: float | None = None
    joules_per_token: float | None = None


def rates(paths: Sequence[tuple[Path, str | None]], prompt: Sequence[int]) -> list[Rate]:
    """Of models, each with its checkpoint, A B A B: what disturbs one disturbs the other."""
    writers = [load_writer(path, checkpoint=checkpoint) for path, checkpoint in paths]
    machine = machine_known()
    seconds: list[list[float]] = [[] for _ in writers]
    joules = [0.0 for _ in writers]
    for _ in range(_TURNS):
        for place, writer in enumerate(writers):
            meter = PowerMeter(machine) if machine else None
            seconds[place] += _turn(writer, prompt[:_PROMPT])
            if meter is not None and meter.basis == "measured":
                joules[place] += meter.joules()
    return [
        Rate(
            precision=writer.precision, threads=torch.get_num_threads(),
            tokens_per_s=1.0 / median(taken),
            tokens_per_s_predicted=_predicted(writer, machine) if machine else None,
            joules_per_token=drawn / len(taken) if drawn else None,
        )
        for writer, taken, drawn in zip(writers, seconds, joules, strict=True)
    ]  # fmt: skip


def _turn(writer: Writer, prompt: Sequence[int]) -> list[float]:
    """Seconds of each token behind the prompt, the likeliest taken each time."""
    tokens = max(1, min(_TOKENS, writer.spec.context - len(prompt)))
    decoding = writer.decoding(len(prompt) + tokens)
    token, seconds = int(decoding.read(prompt).argmax()), list[float]()
    for _ in range(tokens):
        began = time.perf_counter()
        token = int(decoding.read([token]).argmax())
        seconds.append(time.perf_counter() - began)
    return seconds


def _predicted(writer: Writer, machine: Machine) -> float | None:
    found = predicted_answer(writer, machine, _PROMPT, _TOKENS)
    return 1.0 / found.per_token_s if found else None
