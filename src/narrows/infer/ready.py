"""A model to write with, in the shortest time and the least memory.

    named(path, precision, talk) → Model;   Model.writer(...) → Writer

What the packed decoder computes is laid out once, by a process of its own, in narrows' home, and
mapped from there: neither torch nor a second copy of the weights is ever in this one. Everything
else is read by torch, as `load_writer` does.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import narrows
from narrows.data.published import refuse_foreign
from narrows.hardware.find import accelerators
from narrows.infer.generate import Folders, ServingPrecision, Writer
from narrows.infer.laid import Laid
from narrows.infer.laid_beside import kept
from narrows.infer.laying import Wanted, lay_beside, lay_out
from narrows.infer.packed import PackedWriter, unpackable
from narrows.kernels.build import obstacle
from narrows.kernels.low_rank import PackedAdapter
from narrows.model.configuration import read_config
from narrows.model.folder import CONFIG, OWN, PLAN, Own, digest, files
from narrows.model.hub import fetched
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.home import narrows_home
from narrows.spec.hub import repository
from narrows.spec.machine import CachePrecision
from narrows.spec.model import ModelSpec
from narrows.spec.plan import Plan
from narrows.spec.record import load
from narrows.spec.units import Bytes

Talk = Callable[[str], None]
_MAKERS = ("kernels", "model", "adapt", "infer")
"""Rooms whose code says how a model is laid out."""
_UNUSED_S = 30 * 86400.0
_ROOM_BYTES = 1e9
"""Of a disk, left to others."""


class Model(NamedTuple):
    """One that somebody named, to be read in a precision, of a run at a checkpoint, as it is laid
    out; torch is to read it where it is not: torch computes it, or cannot be spared here.
    """

    path: Path
    precision: ServingPrecision | None
    checkpoint: str | None = None
    laid: Laid | None = None

    def writer(
        self, *, cache: CachePrecision | None = None,
        adapters: Folders = MappingProxyType({}), talk: Talk = lambda text: None,
    ) -> Writer:  # fmt: skip
        """The same ready to write, `adapters` beside it, as `load_writer` says."""
        is_run = (self.path / PLAN).is_file()
        if self.laid is None or (is_run and adapters):
            from narrows.infer.writer import load_writer

            return load_writer(
                self.path, checkpoint=self.checkpoint, precision=self.precision, cache=cache,
                adapters=adapters, talk=talk,
            )  # fmt: skip
        about, words = self.laid.about, self.laid.words()
        refuse_foreign(words.tokenizer, about.model.vocabulary, self.path)
        beside = {name: _beside(self.laid, folder) for name, folder in adapters.items()}
        writer = PackedWriter(about.model, words, self.laid.model, cache or "bf16", beside)
        for line in about.said:
            talk(line)
        talk(writer.told(f"{self.path}{about.called}"))
        return writer


def named(
    path: Path, precision: ServingPrecision | None, talk: Talk, checkpoint: str | None = None
) -> Model:
    """A run's folder, a published model's or its name on the hub, or a GGUF file. Raises BadInput
    where what is to be laid out is damaged.
    """
    model = Model(path, precision, checkpoint)
    is_run = (path / PLAN).is_file()
    if precision == "fp32" or obstacle() or (checkpoint and not is_run):
        return model
    name = repository(path)
    wanted = Wanted((fetched(name) if name else path).absolute(), precision, checkpoint)
    found = _of_run(wanted, talk) if is_run else _files(wanted.path)
    return model._replace(laid=_laid(wanted, found, talk)) if found else model


def _of_run(wanted: Wanted, talk: Talk) -> list[Path]:
    """What tells one checkpoint from another; nothing of a run that torch computes."""
    from narrows.infer.checkpoint import locate

    plan = load(Plan, wanted.path / PLAN)
    if not plan.model.writes or plan.model.classes or not _packs(plan.model):
        return []
    if wanted.precision is None and plan.layout.precision == "fp32":
        talk("computed by torch in fp32, as it was trained: --precision bf16 or int8 is quicker")
        return []
    checkpoint = locate(wanted.path, wanted.checkpoint)
    weights = sorted(checkpoint.glob("*.safetensors"))
    return [wanted.path / PLAN, checkpoint / "state.json", *weights]


def _files(path: Path) -> list[Path]:
    """Those of a model that may be laid out, so far as that is known without torch."""
    if path.is_file():
        return [path]
    try:
        if (path / OWN).is_file():
            spec, settings = load(Own, path / OWN).model, path / OWN
        else:
            spec, settings = read_config(path), path / CONFIG
        return [settings, *files(path)] if spec.writes and _packs(spec) else []
    except BadInput:
        # What is wrong with it, its reader says.
        return []


def _packs(spec: ModelSpec) -> bool:
    return not unpackable(spec) and not accelerators()


def _laid(wanted: Wanted, found: list[Path], talk: Talk) -> Laid | None:
    """Before, or now; nothing where torch computes it, which is remembered."""
    home = narrows_home() / "laid"
    folder = home / f"{_key(wanted)}-{_state(found)}"
    laid = Laid.of(folder)
    if laid or _is_torchs(folder):
        return laid
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            # Of several that start at once the first lays it out, and the others wait.
            fcntl.flock(lock, fcntl.LOCK_EX)
            return Laid.of(folder) or _lay(wanted, found, folder, talk)
    except (OSError, RunFailed) as error:
        talk(f"not laid out: {error}")
        return None


def _lay(wanted: Wanted, found: list[Path], folder: Path, talk: Talk) -> Laid | None:
    for old in filter(Path.is_dir, folder.parent.iterdir()):
        stale = old.name.startswith(folder.name.partition("-")[0])
        if stale or Laid.source_of(old) is None or time.time() - old.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(old, ignore_errors=True)
    size = sum(path.stat().st_size for path in found)
    free = shutil.disk_usage(folder.parent).free
    if free < 2 * size + _ROOM_BYTES:
        talk(f"not laid out: {folder.parent} has {Bytes(free).text()} left")
        return None
    talk(f"laying {wanted.path.name} out for this machine, once")
    work = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        # Empty where torch computes it.
        lay_out(wanted, work)
        # Others who share this home may read it, too.
        work.chmod(0o755)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Laid.of(folder)


def _is_torchs(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _key(wanted: Wanted) -> str:
    """Of what takes the place of what was laid out of the same before."""
    return hashlib.sha256("\0".join(map(str, wanted)).encode()).hexdigest()[:16]


def _state(found: list[Path]) -> str:
    """Changes when the model's files do, or what lays them out."""
    code = Path(narrows.__file__).parent
    makers = sorted(each for room in _MAKERS for each in (code / room).glob("*.py"))
    written = [path.stat().st_mtime_ns for path in (*found, *makers)]
    return hashlib.sha256(f"{digest(found)}\0{written}".encode()).hexdigest()[:16]


def _beside(laid: Laid, folder: Path) -> PackedAdapter:
    """The adapter in a folder, laid out beside the model before, or now; by torch in this process
    where it cannot be.
    """
    model, folder = Path(laid.about.source), folder.absolute()
    key = hashlib.sha256(bytes(folder)).hexdigest()[:16]
    place = laid.folder / "beside" / f"{key}-{_state(sorted(folder.glob('adapter_*')))}.npz"
    try:
        found = kept(place, laid.about.model.layers)
        if found is None:
            place.parent.mkdir(exist_ok=True)
            for old in place.parent.glob(f"{key}-*"):
                old.unlink(missing_ok=True)
            lay_beside(folder, model, place)
            found = kept(place, laid.about.model.layers)
    except (OSError, RunFailed):
        found = None
    if found is not None:
        return found
    from narrows.infer import beside
    from narrows.model.opening import opened

    return beside.packed(beside.read(opened(model), {None: folder})[None])
