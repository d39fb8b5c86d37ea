"""Where what an optimizer keeps lives between steps: on the device, in its host's memory, or on a
disk.

On a disk each kind of state is one file, mapped into memory. A step reads a piece, changes it where
it lies, and has it written back and forgotten, by this process and by the kernel, before much more
is at hand: so the resident set is that of what a step needs at once. The files have no names while
they are open, so that nothing is left of a run however it ends.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from narrows.kernels.interface import Master
from narrows.plan.optimizer import AT_HAND_BYTES, check_device
from narrows.spec.errors import BadInput, DoesNotFit
from narrows.spec.layout import Layout
from narrows.spec.units import Bytes

_MOST = 1 << 20
"""Values of a parameter that a step has at hand at once: 4 to 16 MiB of state."""
_WRITTEN = AT_HAND_BYTES - 16 * _MOST
"""Bytes that are written back together."""
_ALIGNED = 64
_PAGE = mmap.PAGESIZE
_IN_MEMORY = ("tmpfs", "ramfs")
_POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE (5.14), which Python has no name for."""


class Room(NamedTuple):
    """What a tensor needs."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """That it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Place(ABC):
    """Memory for tensors by name, `kind.parameter`: what is not on the device is `away`. A step has
    no more than `most` values of a parameter at hand where it can do with fewer.
    """

    away = True
    most = sys.maxsize

    def __init__(self) -> None:
        self.span: Callable[[str], AbstractContextManager[object]] = nullcontext
        self._wanted: dict[str, Room] = {}

    def reserve(self, wanted: dict[str, Room]) -> None:
        """Before any of these is asked for; raises DoesNotFit where there is no room."""
        self._wanted = wanted

    @abstractmethod
    def room(self, name: str) -> Tensor:
        """Noughts."""

    def at_hand(self, kept: int) -> int:
        """Of so many bytes that are away, those that the device has in memory."""
        return 0

    def take(self, name: str, values: Tensor) -> Tensor:
        """What is there already, from now on here."""
        room = self.room(name)
        with self.using([room]):
            return room.copy_(values)

    def master(self, weight: Tensor, rest: Tensor | None) -> Master:
        """What is stepped here of a parameter."""
        return Master(weight, rest)

    def near(self, gradient: Tensor) -> Tensor:
        """It where it is used."""
        return gradient

    def down(self, parameter: Tensor, master: Master) -> None:
        """The parameter was changed elsewhere: so is its master."""
        if master.weight is not parameter:
            master.weight.copy_(parameter)

    def up(self, parameter: Tensor, master: Master) -> None:
        """The master was stepped: so is its parameter."""
        if master.weight is not parameter:
            parameter.copy_(master.weight)

    def using(self, tensors: Iterable[Tensor]) -> AbstractContextManager[object]:
        """Around what changes these, which are of one parameter, or pieces of such."""
        return nullcontext()

    def reading(self, tensors: Iterable[Tensor]) -> AbstractContextManager[object]:
        """Around what reads these, some of which may be elsewhere."""
        return nullcontext()


@final
class OnDevice(Place):
    """Where the weights are."""

    away = False

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def room(self, name: str) -> Tensor:
        shape, dtype = self._wanted[name]
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def take(self, name: str, values: Tensor) -> Tensor:
        return values


@final
class OnHost(Place):
    """In the host's memory, pinned where a device copies from it: gradients come down, the step is
    taken here, and weights go up (arXiv:2101.06840).
    """

    def room(self, name: str) -> Tensor:
        return _pinned(self._wanted[name])

    def master(self, weight: Tensor, rest: Tensor | None) -> Master:
        own = _pinned(Room(tuple(weight.shape), weight.dtype))
        return Master(own.copy_(weight), rest)

    def near(self, gradient: Tensor) -> Tensor:
        return gradient.cpu()


@final
class OnDisk(Place):
    """In files under `folder`, one of each kind; processes have files of their own."""

    most = _MOST

    def __init__(self, folder: Path, rank: int = 0) -> None:
        super().__init__()
        self._folder, self._rank = folder, rank
        self._files: dict[str, _File] = {}
        self._begins: dict[str, int] = {}

    def reserve(self, wanted: dict[str, Room]) -> None:
        super().reserve(wanted)
        sizes: dict[str, int] = {}
        for name, room in wanted.items():
            kind = name.partition(".")[0]
            self._begins[name] = sizes.get(kind, 0)
            sizes[kind] = -(-(self._begins[name] + room.bytes) // _ALIGNED) * _ALIGNED
        _check_space(self._folder, sum(sizes.values()))
        self._files = {
            kind: _File(self._folder / f"offload-{self._rank:05d}-{kind}", size)
            for kind, size in sizes.items()
        }

    def at_hand(self, kept: int) -> int:
        return min(kept, AT_HAND_BYTES)

    def room(self, name: str) -> Tensor:
        shape, dtype = room = self._wanted[name]
        file, begin = self._files[name.partition(".")[0]], self._begins[name]
        return file.bytes[begin : begin + room.bytes].view(dtype).view(shape)

    @contextmanager
    def using(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        spans = list(self._spans(tensors))
        with self.span("offload"):
            for file, start, stop in spans:
                file.fetch(start, stop, change=True)
        yield
        with self.span("offload"):
            for file, start, stop in spans:
                file.changed(start, stop)
            if sum(file.waiting for file in self._files.values()) > _WRITTEN:
                for file in self._files.values():
                    file.write()

    @contextmanager
    def reading(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        spans = list(self._spans(tensors))
        for file, start, stop in spans:
            file.fetch(start, stop, change=False)
        yield
        for file, start, stop in spans:
            file.forget(start, stop)

    def _spans(self, tensors: Iterable[Tensor]) -> Iterator[tuple[_File, int, int]]:
        """Where tensors, or pieces of such, lie in files; those that are elsewhere do nowhere."""
        for each in tensors:
            for file in self._files.values():
                start = each.data_ptr() - file.base
                if 0 <= start < file.size:
                    yield file, start, start + each.nbytes


@final
class _File:
    """Bytes of a file that lie in memory while they are used; `waiting` are those that were changed
    and are to be written back.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._file = path.open("w+b", buffering=0)
        # The kernel frees what has no name once nobody has it open, after kill -9, too.
        path.unlink()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, size)
        self._file.truncate(size)
        self._mapped = mmap.mmap(self._file.fileno(), size)
        self.bytes = torch.frombuffer(self._mapped, dtype=torch.uint8)
        self.base = self.bytes.data_ptr()
        self._start = self._stop = 0
        # Else the kernel reads around what is touched, what was just forgotten, too.
        self._mapped.madvise(mmap.MADV_RANDOM)

    @property
    def waiting(self) -> int:
        return self._stop - self._start

    def fetch(self, start: int, stop: int, *, change: bool) -> None:
        """Read them, all at once; to `change` them, map them, too: page by page that takes twice as
        long.
        """
        start, stop = self._pages(start, stop)
        self._mapped.madvise(mmap.MADV_WILLNEED, start, stop - start)
        if not change or sys.platform != "linux":
            return
        try:
            self._mapped.madvise(_POPULATE_WRITE, start, stop - start)
        except OSError as error:
            # An older kernel does not know it.
            if error.errno != errno.EINVAL:
                raise

    def changed(self, start: int, stop: int) -> None:
        """They are to be written back, with others that they touch."""
        start, stop = self._pages(start, stop)
        if start > self._stop or stop < self._start:
            self.write()
            self._start, self._stop = start, stop
        else:
            self._start, self._stop = min(start, self._start), max(stop, self._stop)

    def write(self) -> None:
        """Write back what waits, and forget it."""
        if self.waiting:
            self._mapped.flush(self._start, self.waiting)
            self.forget(self._start, self._stop)
        self._start = self._stop = 0

    def forget(self, start: int, stop: int) -> None:
        """Have neither this process nor, of what is written, the kernel keep it in memory."""
        start, stop = self._pages(start, stop)
        self._mapped.madvise(mmap.MADV_DONTNEED, start, stop - start)
        if hasattr(os, "posix_fadvise"):
            advice = os.POSIX_FADV_DONTNEED
            os.posix_fadvise(self._file.fileno(), start, stop - start, advice)

    def _pages(self, start: int, stop: int) -> tuple[int, int]:
        return start // _PAGE * _PAGE, min(self.size, -(-stop // _PAGE) * _PAGE)


def place(layout: Layout, device: torch.device, folder: Path | None, rank: int = 0) -> Place:
    """As the layout says; `folder` is where files go if it does not say where.

    Raises BadInput where it cannot be done on this device or in this folder.
    """
    check_device(layout.offload, device.type)
    if layout.offload == "none":
        return OnDevice(device)
    if layout.offload == "host":
        # Sharded, the weights themselves are in the host's memory (parallel/data.py).
        return OnHost() if layout.processes == 1 else OnDevice(torch.device("cpu"))
    given = layout.offload_folder
    chosen = Path(given) if given is not None else folder
    if chosen is None:
        raise BadInput(
            "there is no folder to offload to", hint="--set layout.offload_folder=FOLDER"
        )
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{chosen} cannot be written: {error}", hint="--set layout.offload_folder=FOLDER"
        ) from None
    if in_memory(chosen):
        raise BadInput(
            f"{chosen} is no disk: its files are in memory",
            hint="--set layout.offload_folder=FOLDER, with one on a disk",
        )
    return OnDisk(chosen, rank)


def in_memory(folder: Path) -> bool:
    """Whether a folder's files are in memory; False where that is not known."""
    number = folder.stat().st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    kinds = {line.split()[2]: line.partition(" - ")[2].split()[0] for line in mounts}
    return kinds.get(wanted) in _IN_MEMORY


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DoesNotFit(
            f"what the optimizer keeps does not fit: {Bytes(needed).text()} needed, "
            f"{Bytes(free).text()} free in {folder}",
            hint="free some space, or --set layout.offload_folder=FOLDER on another disk",
        )


def _pinned(room: Room) -> Tensor:
    return torch.zeros(room.shape, dtype=room.dtype, pin_memory=torch.cuda.is_available())
