"""Checkpoints: written beside training, whole or not at all, checksummed.

A checkpoint is a folder `step-00000100` with weights.safetensors, optimizer.safetensors, where
other weights than those in training answer also average.safetensors, and
state.json, which names their checksums; of several processes each writes files of its own, and the
first one closes the folder when all are there. It is written under another name and renamed at the
end. The writer reads the very tensors that training uses: nothing is copied, and the optimizer's
next update waits until it is done.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from narrows.parallel.parts import Part
from narrows.parallel.saved import described
from narrows.spec.errors import BadInput, LostOthers, RunFailed
from narrows.spec.record import Record, digest, load, save, write_atomically
from narrows.train.kept import SCALES
from narrows.train.ramp import Ramp
from narrows.train.schedule import Heard

_TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.uint8: "U8", torch.int16: "I16",
}  # fmt: skip
_STATE = "state.json"
_STATES = (
    "first", "second", "rows", "columns", "anchor", "mass", "average", "rest", "outer", "error",
)  # fmt: skip
_PIECE = 1 << 22
"""Values that are written at once."""
_OTHERS_SECONDS = 600.0
"""How long the first process waits for the files of the others."""


Reading = Callable[[Iterable[Tensor]], AbstractContextManager[object]]


def _as_ever(tensors: Iterable[Tensor]) -> AbstractContextManager[object]:
    """They stay where they are."""
    return nullcontext()


class State(Record):
    """What a checkpoint holds: `step` steps are done; sha256 by file name, its own among them. The
    data of `skipped` steps was left out, `recent` are the last losses, `spikes` those that were
    pardoned of late; `heard` is a plateau's, `noise` the gradients', `ramp` a growing batch's.
    """

    step: int
    tokens: float
    elapsed_s: float
    validation_loss: float | None = None
    skipped: int = 0
    recent: tuple[float, ...] = ()
    spikes: int = 0
    heard: Heard = Heard()
    noise: tuple[float, ...] = ()
    ramp: Ramp | None = None
    sha256: dict[str, str]


class Contents(NamedTuple):
    """What one process has to save: tensors by name, and which part of the whole each is, by its
    own name or its parameter's. Pieces are written within `reading`.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    parts: dict[str, Part]
    average: dict[str, Tensor] = {}
    reading: Reading = _as_ever


class Checkpoints:
    """The checkpoints of one run, of which process `rank` of `ranks` writes its share: `keep`
    newest and the best are kept.
    """

    def __init__(
        self, folder: Path, keep: int, talk: Callable[[str], None], rank: int = 0, ranks: int = 1
    ) -> None:
        self.folder, self.keep, self.talk = folder, keep, talk
        self.rank, self.ranks = rank, ranks
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.partial") if rank == 0 else ():
            shutil.rmtree(leftover, ignore_errors=True)

    def save(self, contents: Contents, state: State, best: bool) -> None:
        """Start writing; raises what the last write met. Call `wait` before changing tensors."""
        self.wait()
        arguments = (contents, state, best)
        self._writer = threading.Thread(target=self._guarded, args=arguments, daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Return when the checkpoint under way is on the disk; raises RunFailed if it is not."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if self.rank and isinstance(failure, FileNotFoundError):
                # The first process takes the folder away where it fails: it knows why.
                raise LostOthers("the first process gave the checkpoint up") from failure
            raise RunFailed(
                f"the checkpoint could not be written: {failure}",
                hint=f"free space under {self.folder}, then train again with --resume",
            ) from failure

    def newest(self) -> tuple[Path, State] | None:
        """The newest checkpoint whose checksums hold; each bad one is named and passed over."""
        return newest(self.folder, self.talk)

    def best(self) -> float:
        """The validation loss of the best one; infinite where none is known."""
        try:
            named = (self.folder / "best").read_text()
            found = load(State, self.folder / named / _STATE).validation_loss
        except (BadInput, OSError):
            return math.inf
        return math.inf if found is None else found

    def at(self, step: int) -> tuple[Path, State]:
        """The checkpoint after so many steps."""
        path = self.folder / _name(step)
        return path, load(State, path / _STATE)

    @property
    def writing(self) -> bool:
        """Whether one is under way."""
        return self._writer is not None and self._writer.is_alive()

    def _guarded(self, contents: Contents, state: State, best: bool) -> None:
        try:
            self._write(contents, state, best)
        except BaseException as error:
            self._failure = error

    def _write(self, contents: Contents, state: State, best: bool) -> None:
        final = self.folder / _name(state.step)
        partial = final.with_name(f"{final.name}.partial")
        if self.ranks == 1:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        try:
            sums = self._write_own(contents, partial)
            if self.rank:
                return
            save(_sealed(state, sums), partial / _STATE)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        except BaseException:
            if not self.rank:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync(self.folder)
        write_atomically(self.folder / "latest", final.name.encode())
        if best:
            write_atomically(self.folder / "best", final.name.encode())
        self._prune()

    def _write_own(self, contents: Contents, partial: Path) -> dict[str, str]:
        """This process's files; the checksums of all that are known then."""
        place = "" if self.ranks == 1 else f"-{self.rank:05d}-of-{self.ranks:05d}"
        sums = {}
        kinds = {"weights": contents.weights, "optimizer": contents.optimizer}
        if contents.average:
            kinds["average"] = contents.average
        for kind, tensors in kinds.items():
            name = f"{kind}{place}.safetensors"
            known = contents.parts
            parts = {k: known.get(k) or known[base(k)] for k in tensors} if place else {}
            sums[name] = write_tensors(partial / name, tensors, parts, contents.reading)
        if self.ranks == 1:
            return sums
        write_atomically(partial / _note(self.rank), json.dumps(sums).encode())
        return sums if self.rank else self._sums_of_all(partial)

    def _sums_of_all(self, partial: Path) -> dict[str, str]:
        """Once every process has left its note; raises TimeoutError where one does not."""
        notes = [partial / _note(rank) for rank in range(self.ranks)]
        until = time.monotonic() + _OTHERS_SECONDS
        while not all(note.exists() for note in notes):
            if time.monotonic() > until:
                late = [note.name for note in notes if not note.exists()]
                raise TimeoutError(f"no {', '.join(late)} after {_OTHERS_SECONDS:.0f} s")
            time.sleep(0.05)
        sums: dict[str, str] = {}
        for note in notes:
            sums |= json.loads(note.read_text())
            note.unlink()
        return sums

    def _prune(self) -> None:
        best = self.folder / "best"
        kept = {best.read_text()} if best.exists() else set()
        complete = sorted(p for p in self.folder.glob("step-*") if p.suffix != ".partial")
        for path in complete[: -self.keep]:
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path, talk: Callable[[str], None]) -> tuple[Path, State] | None:
    """Of a run's checkpoints the newest whose checksums hold, as `Checkpoints.newest` has it."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if path.name.endswith(".partial"):
            continue
        fault = _fault(path)
        if fault is None:
            return path, load(State, path / _STATE)
        talk(f"warning: {path} is damaged ({fault}); trying the one before")
    return None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def base(name: str) -> str:
    """The parameter that a tensor of an optimizer's state belongs to; a weight's own name."""
    kind, _, rest = name.partition(".")
    return rest if kind.partition("@")[0].removesuffix(SCALES) in _STATES else name


def files(path: Path, kind: str) -> list[Path]:
    """Of a checkpoint, those that hold its "weights" or its "optimizer"."""
    return sorted(path.glob(f"{kind}*.safetensors"))


def _note(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def write_tensors(
    path: Path, tensors: dict[str, Tensor], parts: dict[str, Part] | None = None,
    reading: Reading = _as_ever,
) -> str:  # fmt: skip
    """Write a safetensors file straight from the tensors' memory; returns its sha256. `parts` says
    what of the whole they are; pieces of them are written within `reading`.

    The library's own writer copies every tensor first, which would double the peak.
    """
    header: dict[str, object] = {"__metadata__": described(parts)} if parts else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    checksum = hashlib.sha256()
    with path.open("wb") as file:
        for head in (len(text).to_bytes(8, "little"), text):
            checksum.update(head)
            file.write(head)
        for values in _pieces(tensors):
            with reading([values]):
                piece = memoryview(values.cpu().view(torch.uint8).numpy())  # type: ignore[arg-type]
                checksum.update(piece)
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return checksum.hexdigest()


def _pieces(tensors: dict[str, Tensor]) -> Iterator[Tensor]:
    for tensor in tensors.values():
        yield from tensor.detach().contiguous().view(-1).split(_PIECE)


def _sealed(state: State, sums: dict[str, str]) -> State:
    """The state with the checksums of all files; its own is that of what it says but for that."""
    state = msgspec.structs.replace(state, sha256=sums)
    return msgspec.structs.replace(state, sha256={**sums, _STATE: digest(state)})


def _fault(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        state = load(State, path / _STATE)
        sums = {name: each for name, each in state.sha256.items() if name != _STATE}
        if _STATE in state.sha256 and _sealed(state, sums).sha256 != state.sha256:
            return f"{_STATE} does not match its checksum"
        for name, expected in sums.items():
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return f"{name} does not match its checksum"
    except (BadInput, OSError) as error:
        return str(error).splitlines()[0]
    return None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
