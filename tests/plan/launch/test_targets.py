from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from narrows.plan.launch import TARGETS
from narrows.plan.launch.targets import KINDS, target
from narrows.plan.launch.work import Work
from narrows.spec.errors import BadInput

MakeWork = Callable[..., Work]
ENOUGH: dict[str, str | int] = {
    "device": "cpu", "image": "i", "claim": "c", "setup": "true", "head": "node0",
    "bucket": "s3://plays",
}  # fmt: skip


def test_every_name_is_a_target() -> None:
    assert tuple(KINDS) == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_each_needs_what_it_cannot_know(name: str) -> None:
    for field in msgspec.structs.fields(KINDS[name]):
        if not field.required:
            continue
        given = {each: value for each, value in taken(name).items() if each != field.name}
        with pytest.raises(BadInput, match=f"{name} needs --{field.name}") as caught:
            target(name, given)
        assert caught.value.hint is not None and caught.value.hint.startswith(f"--{field.name} ")


@pytest.mark.parametrize("name", TARGETS)
def test_each_names_the_plan_and_starts_its_file(name: str, make_work: MakeWork) -> None:
    where = target(name, taken(name))
    work = make_work(run="/runs/plays")
    text = where.text(work)
    assert "Plays_of.1600: data 4, tensor 2, as 2 x 4 processes" in text
    assert all(len(line) <= 100 for line in text.splitlines() if line.startswith("#"))
    assert "it" in where.submission(work, "it")


def test_an_option_of_another_target_is_refused() -> None:
    with pytest.raises(BadInput, match="slurm has no use for --image") as caught:
        target("slurm", {"device": "cpu", "image": "i"})
    assert caught.value.hint is not None and "--partition" in caught.value.hint


def test_a_device_is_one_of_two() -> None:
    with pytest.raises(BadInput, match="--on ray"):
        target("ray", {"device": "tpu"})


def taken(name: str) -> dict[str, str | int]:
    """Of all options those that the target takes."""
    fields = KINDS[name].__struct_fields__
    return {each: value for each, value in ENOUGH.items() if each in fields}
