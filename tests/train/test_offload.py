"""What an optimizer keeps somewhere else changes nothing but where it is."""

from __future__ import annotations

import ctypes
import mmap
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.plan.optimizer import AT_HAND_BYTES
from narrows.spec.dataset import Dataset
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.exchange import LocalSteps
from narrows.spec.plan import Evaluation, Plan
from narrows.spec.record import save
from narrows.train import offload, step
from narrows.train.meter import memory_peak
from narrows.train.offload import OnDisk, OnHost, Room, in_memory, place
from narrows.train.run import train
from narrows.train.state import restore
from narrows.train.step import Trainer, evaluate
from tests.model.conftest import needs_native
from tests.parallel.processes import run as processes

from .conftest import RandomBatches, layout, model, plan, tiny_machine, with_text
from .test_optimizer import KEPT, beside, optimizer, saved
from .test_run import kill_at, losses, silent
from .test_step import CPU

HOWS = [
    {"precision": "fp32"}, pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
    pytest.param({"precision": "bf16", "kernels": "native"}, marks=needs_native),
]  # fmt: skip
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small model has many, few of which are at hand; whatever a test's folder is."""
    monkeypatch.setattr(OnDisk, "most", 1 << 11)
    monkeypatch.setattr(offload, "_WRITTEN", 1 << 14)
    if "in_memory" not in request.node.name:
        monkeypatch.setattr(offload, "in_memory", lambda folder: False)


def after(trainer: Trainer, first: int = 0, last: int = 5) -> list[tuple[float, float]]:
    return [trainer.step(number, RandomBatches())[:2] for number in range(first, last)]


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {**trainer.optimizer.state(), **trainer.optimizer.parameters}


def alike(one: Trainer, other: Trainer) -> bool:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(each, theirs[name]) for name, each in ours.items())


def both(folder: Path, how: dict[str, object], **changes: object) -> tuple[Trainer, Trainer]:
    """A trainer that keeps all in memory, and one that does not."""
    there, away = (
        plan(layout=layout(**how, offload=where), **changes) for where in ("none", "disk")
    )
    return Trainer(there, CPU), Trainer(away, CPU, folder)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("name", "bits"), KEPT)
def test_on_a_disk_every_rule_takes_the_same_steps(
    name: str, bits: int, how: dict[str, object], tmp_path: Path
) -> None:
    average = None if name == "schedule_free" else 0.9
    chosen = optimizer(name, bits, ema=average)
    usual, away = both(tmp_path, how, optimizer=chosen, model=model("llama"))
    assert after(usual) == after(away)
    assert alike(usual, away)
    assert evaluate(usual, RandomBatches(), 4) == evaluate(away, RandomBatches(), 4)


@pytest.mark.parametrize(("how", "changes"), [
    ({"micro_batch": 1, "accumulation": 4, "precision": "bf16"}, {}),
    ({"precision": "bf16"}, {"fused": True, "clip": 0.0}),
])  # fmt: skip
def test_on_a_disk_gradients_are_summed_or_used_at_once_as_ever(
    how: dict[str, object], changes: dict[str, object], tmp_path: Path
) -> None:
    usual, away = both(tmp_path, how, optimizer=optimizer(**changes))  # type: ignore[arg-type]
    assert after(usual) == after(away) and alike(usual, away)


@pytest.mark.parametrize("first", ["none", "disk"])
@pytest.mark.parametrize(("name", "bits"), [("adamw", 32), ("adamw", 8), ("schedule_free", 32)])
def test_a_checkpoint_is_resumed_from_bit_for_bit_wherever_its_state_was(
    name: str, bits: int, first: str, tmp_path: Path
) -> None:
    how = {"precision": "bf16"}
    trainers = dict(zip(("none", "disk"), both(tmp_path, how, optimizer=optimizer(name, bits)),
                        strict=True))  # fmt: skip
    after(trainers[first])
    path = saved(trainers[first], beside(trainers[first], tmp_path / "checkpoints"))
    for other in both(tmp_path, how, optimizer=optimizer(name, bits)):
        restore(other, path, print)
        assert alike(other, trainers[first])
        after(other, 5, 8)
        trainers[other.plan.layout.offload + " resumed"] = other
    after(trainers[first], 5, 8)
    assert alike(trainers[first], trainers["none resumed"])
    assert alike(trainers[first], trainers["disk resumed"])


def both_together(folder: Path, spread: dict[str, object]) -> bool:
    usual, away = both(folder, {"micro_batch": 2, "precision": "bf16", **spread})
    return after(usual) == after(away) and alike(usual, away)


@pytest.mark.dist
@pytest.mark.parametrize("spread", [
    {"data": 2}, {"data": 2, "sharding": "parameters"}, {"tensor": 2, "micro_batch": 4},
    {"pipeline": 2, "accumulation": 2},
])  # fmt: skip
def test_each_of_several_processes_has_files_of_its_own(
    spread: dict[str, object], tmp_path: Path
) -> None:
    assert processes(2, both_together, tmp_path, spread) == [True, True]


@pytest.fixture
def on_a_disk(tmp_path: Path) -> Path:
    if in_memory(tmp_path):
        pytest.skip(f"{tmp_path} is in memory")
    return tmp_path


def resident(mapped: Tensor) -> int:
    """Bytes of a mapping that the kernel has in memory, in this process or in its cache."""
    pages = -(-mapped.nbytes // mmap.PAGESIZE)
    known = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    where, size = ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(mapped.nbytes)
    assert libc.mincore(where, size, known) == 0
    return sum(each & 1 for each in known) * mmap.PAGESIZE


def test_little_of_what_is_on_a_disk_is_in_memory(on_a_disk: Path) -> None:
    spec = model("llama", width=256, vocabulary=2048)
    how = {"offload": "disk", "precision": "bf16"}
    trainer = Trainer(plan(model=spec, layout=layout(**how)), CPU, on_a_disk)
    optimizer = trainer.optimizer
    assert isinstance(optimizer.place, OnDisk)
    files = optimizer.place._files
    assert set(files) == {"rest", "first", "second"}
    whole = sum(file.size for file in files.values())
    assert whole >= 10 * sum(each.numel() for each in optimizer.parameters.values())
    least = 20 * (offload._WRITTEN + 10 * OnDisk.most)
    assert whole > least, "too small a model to tell"

    def there() -> int:
        return sum(resident(file.bytes) for file in files.values())

    assert there() < least
    after(trainer, 0, 2)
    assert there() < least
    saved(trainer, beside(trainer, on_a_disk / "checkpoints"))
    assert there() < least


def test_what_is_resident_would_be_seen(on_a_disk: Path) -> None:
    away = OnDisk(on_a_disk)
    away.reserve({"first.x": Room((1 << 20,), torch.float32)})
    tensor = away.room("first.x")
    assert resident(tensor) == 0 and not tensor.any()
    assert resident(tensor) >= 1 << 20
    with away.reading([tensor]):
        pass
    assert resident(tensor) == 0


def test_a_ledger_tells_what_is_at_hand(tmp_path: Path) -> None:
    usual, away = (memory_peak(each, 1e9) for each in both(tmp_path, {"precision": "bf16"}))
    assert away.masters == 0.0 < usual.masters
    assert away.optimizer == usual.optimizer + usual.masters < AT_HAND_BYTES
    assert OnDisk(tmp_path).at_hand(10**9) == AT_HAND_BYTES and OnHost().at_hand(10**9) == 0


def test_values_survive_being_forgotten_and_lie_side_by_side(tmp_path: Path) -> None:
    away = OnDisk(tmp_path)
    wanted = {"first.a": Room((3, 5), torch.float32), "first.b": Room((7,), torch.int16),
              "second.a": Room((3, 5), torch.uint8)}  # fmt: skip
    away.reserve(wanted)
    for number, (name, room) in enumerate(wanted.items()):
        away.take(name, torch.full(room.shape, number + 1, dtype=room.dtype))
    for file in away._files.values():
        file.write()
    for number, (name, room) in enumerate(wanted.items()):
        found = away.room(name)
        assert found.shape == room.shape and found.dtype == room.dtype
        assert (found == number + 1).all()
    assert away.room("first.b").data_ptr() - away.room("first.a").data_ptr() == 64


def test_no_file_is_left_whatever_ends_a_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at a step, it has left nothing but what it was to keep, and goes on as if nothing had
    happened.
    """
    how = {"micro_batch": 2, "accumulation": 2, "precision": "bf16"}
    made = with_text(dataset, layout=layout(**how, offload="disk"), steps=24)
    usual = msgspec.structs.replace(made, layout=layout(**how))
    if in_memory(tmp_path):
        pytest.skip("another process takes no folder in memory")
    save(made, tmp_path / "plan.toml")
    save(tiny_machine(), tmp_path / "machine.toml")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(usual, straight, machine=tiny_machine(), resume=False, talk=silent)
    kill_at(8, tmp_path, broken)
    assert not list(broken.rglob("offload*"))
    train(made, broken, machine=tiny_machine(), resume=True, talk=silent)
    assert losses(broken) == losses(straight)
    assert not list(broken.rglob("offload*"))


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1e9, 1e9 - 1e5, 1e5))
    with pytest.raises(DoesNotFit, match=r"optimizer keeps does not fit: .* needed, 100 kB free"):
        Trainer(plan(layout=layout(offload="disk")), CPU, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_layout_names_another_folder(tmp_path: Path) -> None:
    there = tmp_path / "a" / "b"
    chosen = plan(layout=layout(offload="disk", offload_folder=str(there)))
    after(Trainer(chosen, CPU, tmp_path / "run"))
    assert there.is_dir() and not (tmp_path / "run").exists()


def test_files_in_memory_are_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "in_memory", lambda folder: True)
    with pytest.raises(BadInput, match="is no disk: its files are in memory"):
        place(layout(offload="disk"), CPU, tmp_path)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no files in memory here")
def test_dev_shm_is_in_memory_and_the_working_directory_need_not_be() -> None:
    assert in_memory(Path("/dev/shm")) and not in_memory(Path("/proc"))


@pytest.mark.parametrize(("how", "folder", "message"), [
    ({"offload": "host"}, "runs", "a processor's own memory is the host's"),
    ({"offload": "disk"}, None, "no folder to offload to"),
    ({"offload": "disk", "offload_folder": "/proc/none"}, "runs", "cannot be written"),
])  # fmt: skip
def test_what_cannot_be_offloaded_is_refused(
    how: dict[str, object], folder: str | None, message: str, tmp_path: Path
) -> None:
    chosen = None if folder is None else tmp_path / folder
    with pytest.raises(BadInput, match=message) as caught:
        place(layout(**how), CPU, chosen)
    assert caught.value.exit_code == 2 and "layout.offload" in str(caught.value.hint)


def test_a_disk_is_for_processors(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="stepped in its host's memory, not on a disk"):
        place(layout(offload="disk"), torch.device("cuda"), tmp_path)


def test_ranks_with_steps_of_their_own_keep_their_masters_at_hand(tmp_path: Path) -> None:
    chosen = plan(
        layout=layout(data=2, offload="disk"), exchange=LocalSteps(every=2),
        evaluation=Evaluation(every=4, sequences=4),
    )  # fmt: skip
    with pytest.raises(BadInput, match="compare masters, which must be at hand"):
        Trainer(chosen, CPU, tmp_path)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], Trainer]:
    """A trainer with what it keeps, and masters, in memory beside the device's."""

    def made(chosen: Plan) -> Trainer:
        with monkeypatch.context() as context:
            context.setattr(step, "place", lambda *given: OnHost())
            return Trainer(chosen, CPU)

    return made


@pytest.mark.parametrize("how", HOWS[:2])
@pytest.mark.parametrize(("name", "bits"), [("adamw", 32), ("adamw", 8), ("lion", 16)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_on_the_host_the_same_steps_are_taken(
    name: str, bits: int, how: dict[str, object], accumulation: int,
    on_host: Callable[[Plan], Trainer],
) -> None:  # fmt: skip
    """Here both are one processor's memory, and yet copies: weights that were not taken up, or
    masters that were not taken down, would be seen.
    """
    spread = {"accumulation": accumulation, "micro_batch": 4 // accumulation}
    chosen = plan(optimizer=optimizer(name, bits, ema=0.9), layout=layout(**how, **spread))
    usual, away = Trainer(chosen, CPU), on_host(chosen)
    for name, own in away.optimizer.own.items():
        assert own.master.weight.data_ptr() != away.optimizer.parameters[name].data_ptr()
    assert after(usual) == after(away) and alike(usual, away)


def test_on_the_host_a_checkpoint_is_resumed_from_bit_for_bit(
    tmp_path: Path, on_host: Callable[[Plan], Trainer]
) -> None:
    chosen = plan(layout=layout(precision="bf16"))
    away = on_host(chosen)
    after(away)
    path = saved(away, beside(away, tmp_path))
    resumed = on_host(chosen)
    restore(resumed, path, print)
    assert after(away, 5, 8) == after(resumed, 5, 8) and alike(away, resumed)


@pytest.mark.gpu
def test_on_a_device_its_host_keeps_the_optimizer() -> None:
    device = torch.device("cuda")
    usual = Trainer(plan(), device)
    away = Trainer(plan(layout=layout(offload="host")), device)
    assert all(each.is_pinned() for each in away.optimizer.state().values())
    assert all(each.device == device or each.is_cuda for each in away.optimizer.held.values())
    for (loss, _), (other, _) in zip(after(usual), after(away), strict=True):
        assert loss == pytest.approx(other, rel=1e-4)
