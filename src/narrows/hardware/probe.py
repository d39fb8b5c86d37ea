"""The machine as a record: found, measured once, kept, and measured again when it is another."""

from __future__ import annotations

import fcntl
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from narrows.hardware import child, find, places, power
from narrows.hardware.measurement import Measurement, Request
from narrows.spec import record
from narrows.spec.errors import BadInput, RunFailed
from narrows.spec.home import narrows_home
from narrows.spec.machine import Compiler, Fact, Link, Machine, Processor
from narrows.spec.units import Bytes, Seconds

Talk = Callable[[str], None]

SECONDS = 56.0
"""All of a probe, so that with start and end it stays below a minute on cores left to it."""
_SECONDS_MEASURING = 42.0
_SECONDS_STUCK = 180.0
"""On cores that others hold, a part of it takes longer than planned; not this."""
_OTHER_LOAD_TOLD = 0.3
_FELL = 0.7


def path() -> Path:
    """Where the record of this machine is kept."""
    return narrows_home() / "machine.toml"


def machine_known() -> Machine | None:
    """The kept record where it is of this machine, without torch and without measuring."""
    try:
        machine = record.load(Machine, path())
    except BadInput:
        return None
    return machine if machine.fingerprint == find.fingerprint() else None


def probe(*, talk: Talk, refresh: bool = False) -> Machine:
    """The record of this machine: the kept one where it is still true, else measured now.

    `talk` receives a line for each thing measured, and first the reason where a kept record is
    not used. A record of other hardware is put aside under its fingerprint and taken up again when
    that hardware (say, another allowance of cores) comes back. What electricity costs is kept as
    somebody may have written it, and links that `narrows probe --link` measured stay. Raises
    BadInput where NARROWS_HOME cannot be written, RunFailed where measuring fails.
    """
    here = find.fingerprint()
    with _alone(talk):
        kept, reason = _kept(here)
        if reason:
            talk(reason)
        if kept is not None and not refresh:
            return kept
        started = time.monotonic()
        machine = _measure(here, talk, kept)
        record.save(machine, path())
        if kept is not None:
            _tell_what_fell(kept, machine, talk)
        talk(f"probed in {time.monotonic() - started:.0f} s, kept in {path()}")
    return machine


def keep_link(link: Link, *, talk: Talk) -> None:
    """Put it into this machine's record, which is measured now where there is none."""
    measured = probe(talk=talk)
    with _alone(talk):
        machine = machine_known() or measured
        links = merged(machine.links, (link,))
        record.save(msgspec.structs.replace(machine, links=links), path())


def merged(kept: Iterable[Link], new: Iterable[Link]) -> tuple[Link, ...]:
    """A new link in the place of an old one of as many ranks and hosts."""
    found = {(each.ranks, each.hosts): each for each in (*kept, *new)}
    return tuple(found[place] for place in sorted(found))


def differences(machine: Machine, *, root: Path = places.ROOT) -> tuple[str, ...]:
    """What the record says otherwise than this machine is; empty where it is of this machine."""
    if machine.fingerprint == find.fingerprint(root):
        return ()
    now, then = find.processor(root), machine.processor
    memory = find.memory_capacity(root).value
    memory_then = machine.device.memory.capacity.value if machine.device.kind == "cpu" else memory
    compared = {
        "processor": (then.name, now.name),
        "instruction sets": (" ".join(then.instruction_sets), " ".join(now.instruction_sets)),
        "cores allowed": (then.cores_allowed, now.cores_allowed),
        "processor quota": (then.quota, now.quota),
        "memory": (f"{memory_then / 2**30:.0f} GiB", f"{memory / 2**30:.0f} GiB"),
        "torch": (machine.torch, find.torch_version()),
    }
    said = tuple(f"{what}: {a} then, {b} now" for what, (a, b) in compared.items() if a != b)
    return said or ("another compiler, accelerator or version of the probe",)


@contextmanager
def _alone(talk: Talk) -> Iterator[None]:
    """Two probes at once would each measure half a machine: the second waits for the first."""
    lock = path().with_name("machine.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise BadInput(
            f"{lock.parent} cannot be written: {error.strerror}",
            hint="set NARROWS_HOME to a folder that can be written",
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            talk("waiting for another probe of this machine")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kept(here: str) -> tuple[Machine | None, str]:
    """The kept record of this hardware, and what is to be said about it."""
    try:
        machine = record.load(Machine, path())
    except BadInput as error:
        if path().exists():
            return None, f"probing, since the kept record cannot be used: {error.what}"
        return None, "probing this machine once: it takes a minute or two and is kept"
    if machine.fingerprint == here:
        return machine, ""
    why = f"{path()} is of other hardware ({'; '.join(differences(machine))})"
    path().replace(path().with_name(f"machine-{machine.fingerprint}.toml"))
    aside = path().with_name(f"machine-{here}.toml")
    try:
        again = record.load(Machine, aside)
    except BadInput:
        return None, f"probing, since {why}"
    aside.replace(path())
    if again.fingerprint != here:
        return None, f"probing, since {why}"
    return again, f"{why}: taking up the record of this hardware from {again.probed_at}"


def _measure(here: str, talk: Talk, kept: Machine | None) -> Machine:
    started = time.monotonic()
    processor, home = find.processor(), narrows_home()
    request = Request(
        folder=str(home), seconds=_SECONDS_MEASURING, threads=_thread_counts(processor)
    )
    try:
        found = child.run("everything", request, Measurement, seconds=_SECONDS_STUCK, talk=talk)
    except child.TooLong as error:
        raise RunFailed(
            f"measuring did not end: {error}", hint="narrows doctor, and try when it is quiet"
        ) from None
    if found.other_load > _OTHER_LOAD_TOLD:
        talk(
            f"other work kept {found.other_load:.1f} cores busy; {1 - found.settled:.0%} of the "
            "timings did not settle. When it is quiet: narrows probe --refresh"
        )
    talk("measuring torch.compile")
    threads = (found.device.threads,)
    compiling = msgspec.structs.replace(request, threads=threads)
    compiler = _compiler(compiling, max(12.0, SECONDS - (time.monotonic() - started)))
    idle, full = power.estimate(processor, accelerator=found.device.kind != "cpu")
    full = found.device.power_full or full
    device = msgspec.structs.replace(
        found.device, power_idle=found.device.power_idle or idle, power_full=full
    )
    memory = find.memory_capacity().value
    return Machine(
        name=_name(processor, device.name if device.kind != "cpu" else None, memory),
        fingerprint=here,
        probed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        torch=find.torch_version(),
        processor=processor,
        device=device,
        devices=found.devices,
        disk=found.disk,
        electricity=kept.electricity
        if kept
        else power.electricity(processor.cores_allowed, memory, full.value, rented=find.virtual()),
        compiler=compiler,
        kernel_sets=found.kernel_sets,
        links=merged(kept.links if kept else (), found.links),
        other_load=Fact(
            value=found.other_load,
            basis="measured",
            source=f"cores; {found.settled:.0%} of the timings settled",
        ),
    )


def _compiler(request: Request, seconds: float) -> Compiler:
    if find.compiler_path() is None:
        return Compiler(available=False, reason="no C++ compiler was found")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return Compiler(available=False, reason="Python's headers (Python.h) are not installed")
    try:
        return child.run("compiler", request, Compiler, seconds=seconds)
    except RunFailed as error:
        return Compiler(available=False, reason=error.causes[-1] if error.causes else error.what)
    except child.TooLong:
        guess = Fact(
            value=Seconds(2 * seconds).rounded(2),
            basis="estimated",
            source=f"twice the {seconds:.0f} s after which it had not finished",
        )
        return Compiler(available=True, reason="compiling was too slow", seconds_per_block=guess)


def _thread_counts(processor: Processor) -> tuple[int, ...]:
    """With several hardware threads to a core, one thread to each core may well be faster."""
    allowed = processor.cores_allowed
    return tuple(sorted({max(1, allowed // processor.threads_per_core), allowed}))


def _name(processor: Processor, accelerator: str | None, memory: Bytes) -> str:
    cores = f"{processor.cores_allowed} core{'s' if processor.cores_allowed > 1 else ''}"
    host = f"{processor.name}, {cores}, {memory / 1e9:.0f} GB"
    return f"{accelerator} in {host}" if accelerator else host


def _tell_what_fell(before: Machine, after: Machine, talk: Talk) -> None:
    then = {curve.precision: curve.peak.value for curve in before.device.matmul}
    for curve in after.device.matmul:
        earlier = then.get(curve.precision)
        if earlier and curve.peak.value < _FELL * earlier:
            talk(
                f"{curve.precision} products now reach {curve.peak.value.text()}, before "
                f"{earlier.text()}: the machine is throttled, or busy with other work"
            )
