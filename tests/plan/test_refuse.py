from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import pytest

from narrows.plan.plan import make_plan
from narrows.spec import record
from narrows.spec.errors import DoesNotFit
from narrows.spec.job import Job, LayoutIntent, ModelIntent, TrainIntent
from narrows.spec.machine import Machine

MakeMachine = Callable[..., Machine]
JOB = Job(
    name="gpt2", model=ModelIntent(kind="gpt2", width=768, vocabulary=50257, context=1024),
    train=TrainIntent(steps=10, batch_sequences=8),
)  # fmt: skip


def refused(job: Job, machine: Machine) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as caught:
        make_plan(job, machine, None)
    return caught.value


def with_hint(job: Job, error: DoesNotFit) -> Job:
    """The job as the hint would have it."""
    assert error.hint is not None
    changes = re.findall(r"--set (\S+)", error.hint)
    assert changes
    data = record.to_builtins(job)
    for change in changes:
        data = record.with_override(data, change)
    return record.from_builtins(Job, data)


def test_the_message_has_needs_causes_and_a_command(make_machine: MakeMachine) -> None:
    pinned = msgspec.structs.replace(
        JOB, layout=LayoutIntent(micro_batch=8, recompute="none", kernels="torch")
    )
    error = refused(pinned, make_machine(gigabytes=4.0))
    assert re.fullmatch(
        r"the job does not fit: [\d.]+ GB needed, 3\.8 GB free on cpu \(two cores of a test\)",
        error.what,
    )
    (causes,) = error.causes
    assert re.fullmatch(
        r"activations [\d.]+ GB, \w+ [\d.]+ [GM]B, \w+ [\d.]+ [GM]B, other [\d.]+ [GM]B", causes
    )
    assert error.hint is not None
    assert re.fullmatch(
        r"narrows plan job\.toml --set layout\.\w+=\w+ +\([\d.]+ [GM]B, [\d.]+x the step time\)",
        error.hint,
    )
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("layout", "gigabytes"),
    [
        (LayoutIntent(micro_batch=8, recompute="none"), 3.2),
        (LayoutIntent(micro_batch=8, loss_chunk=8192, recompute="full"), 2.6),
        (LayoutIntent(precision="fp32"), 1.9),
        (LayoutIntent(), 1.9),
        (LayoutIntent(recompute="none", micro_batch=8), 1.9),
    ],
)
def test_the_hint_works(layout: LayoutIntent, gigabytes: float, make_machine: MakeMachine) -> None:
    machine = make_machine(gigabytes=gigabytes)
    job = msgspec.structs.replace(JOB, layout=layout)
    plan = make_plan(with_hint(job, refused(job, machine)), machine, None)
    assert plan.predicted.memory.peak <= gigabytes * 1e9


def test_what_no_change_can_save_says_so(make_machine: MakeMachine) -> None:
    assert "more memory" in (refused(JOB, make_machine(gigabytes=0.05)).hint or "")


def test_checkpoints_must_fit_the_disk(make_machine: MakeMachine) -> None:
    error = refused(JOB, make_machine(disk_gigabytes=2.0))
    assert "the checkpoints do not fit" in error.what
    assert "/runs" in error.what
