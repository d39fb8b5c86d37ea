"""A run folder as training leaves it: an 11M model on two cores, three hundred steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from narrows.spec.dataset import Dataset, Dropped, Shard
from narrows.spec.layout import Layout
from narrows.spec.ledger import Kind, Ledger, MemoryPeak, Phase, Row, Total
from narrows.spec.machine import (
    Compiler,
    Device,
    Disk,
    Electricity,
    Fact,
    Link,
    Machine,
    MatmulCurve,
    Memory,
    Processor,
)
from narrows.spec.model import llama
from narrows.spec.optimizer import Optimizer
from narrows.spec.plan import (
    Alternative,
    Checkpointing,
    Data,
    Doubling,
    Evaluation,
    Plan,
    Provenance,
    Schedule,
)
from narrows.spec.record import save
from narrows.spec.units import (
    Bytes,
    BytesPerSecond,
    DollarsPerHour,
    FlopPerSecond,
    GramsPerKilowattHour,
    Seconds,
    Watts,
)
from tests.plan.conftest import make_dataset, make_machine

__all__ = ["make_dataset", "make_machine"]

STEPS = 300
TOKENS = 32 * 256
MODEL = llama(layers=8, width=320, heads=5, vocabulary=4096, context=256)
LAYOUT = Layout(
    micro_batch=8, accumulation=4, precision="bf16", recompute="none", compile=False,
    kernels="native", threads=2, loss_chunk=512,
)  # fmt: skip
HOSTILE = "</pre><script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b[2J\u202e"


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run folder; `steps` of 300 taken, with or without its ledger."""

    def make(*, steps: int = STEPS, ledger: bool = True, name: str = "tempest") -> Path:
        return write_run(tmp_path / name, steps=steps, ledger=ledger)

    return make


@pytest.fixture
def run_folder(make_run: Callable[..., Path]) -> Path:
    """A finished run."""
    return make_run()


@pytest.fixture
def hostile() -> str:
    """A sample of text that tries to leave its place."""
    return HOSTILE


def write_run(folder: Path, *, steps: int, ledger: bool) -> Path:
    folder.mkdir(parents=True)
    save(plan(), folder / "plan.toml")
    save(machine(), folder / "machine.toml")
    save(dataset(), folder / "dataset.json")
    if ledger:
        save(measured(steps), folder / "ledger.json")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in metrics(steps))
    )
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in samples(steps))
    )
    return folder


def plan() -> Plan:
    whole = predicted()
    return Plan(
        name="tempest", seed=7, model=MODEL, layout=LAYOUT,
        optimizer=Optimizer(learning_rate=1.2e-3),
        schedule=Schedule(shape="cosine", warmup_steps=15, decay_steps=285, floor=0.1),
        batch_sequences=32, context=256, steps=STEPS,
        evaluation=Evaluation(every=50, sequences=64),
        checkpoints=Checkpointing(every=100, keep=2),
        data=Data(
            folder="/home/ada/.cache/narrows/data/9f31c2aa", digest="9f31c2aa77d0e514",
            tokens_train=1_812_004, tokens_validation=95_102, bytes_per_token=3.31,
        ),
        power_watts=41.0, peak_flop_per_s=0.95e12, why=WHY,
        made_from=Provenance(
            job="1c0ffee5a11ad0e5", machine="77aa01c9d24be610", machine_name="two-cores",
            dataset="9f31c2aa77d0e514", narrows="0.1.0",
        ),
        bottleneck="compute", doubling=doubling(whole), alternatives=alternatives(whole),
        predicted=whole,
    )  # fmt: skip


WHY = {
    "model": "5 min on this machine buy 2.5M tokens at 11.2M parameters; compute-optimal would be "
    "smaller still (arXiv:2203.15556), and the corpus has only 1.8M tokens",
    "micro_batch": "8 sequences keep a block's activations in the 32 MB cache: 4 % faster than 16",
    "accumulation": "32 sequences a step in micro-batches of 8",
    "precision": "bf16 products run at 950 GFLOP/s here, fp32 at 230",
    "recompute": "activations fit, so nothing is computed twice",
    "compile": "saves 9 s of 5 min and costs 41 s of compiling",
    "kernels": "native fused kernels: pointwise work 2.1 times faster than torch's",
    "threads": "two cores are allowed; both help",
    "loss_chunk": "4,096 logits a position: 512 at once stay in the cache",
    "optimizer.learning_rate": "0.0012 at width 320, by the fit of arXiv:2001.08361",
}

#: operation, phase, kind, calls, FLOP, bytes, predicted seconds, measured over predicted
OPERATIONS: tuple[tuple[str, Phase, Kind, int, float, float, float, float], ...] = (
    ("qkv", "forward", "gemm", 32, 4.03e10, 4.2e8, 0.0556, 1.03),
    ("qkv", "backward", "gemm", 64, 8.05e10, 9.1e8, 0.1140, 1.06),
    ("attention_out", "forward", "gemm", 32, 1.34e10, 2.1e8, 0.0204, 1.01),
    ("attention_out", "backward", "gemm", 64, 2.68e10, 4.6e8, 0.0410, 1.09),
    ("up", "forward", "gemm", 32, 7.25e10, 6.4e8, 0.0910, 0.98),
    ("up", "backward", "gemm", 64, 1.45e11, 1.5e9, 0.1910, 1.07),
    ("down", "forward", "gemm", 32, 3.62e10, 3.6e8, 0.0470, 1.04),
    ("down", "backward", "gemm", 64, 7.25e10, 8.2e8, 0.0990, 1.02),
    ("head", "forward", "gemm", 64, 2.15e10, 1.5e8, 0.0262, 0.97),
    ("head", "backward", "gemm", 128, 4.29e10, 3.3e8, 0.0533, 1.00),
    ("scores", "forward", "attention", 32, 1.07e10, 1.7e8, 0.0330, 1.12),
    ("scores", "backward", "attention", 32, 2.68e10, 4.0e8, 0.0810, 0.93),
    ("norm", "forward", "pointwise", 68, 1.1e8, 3.6e8, 0.0180, 1.08),
    ("norm", "backward", "pointwise", 68, 2.9e8, 7.1e8, 0.0350, 1.11),
    ("swiglu", "forward", "pointwise", 32, 2.8e8, 3.4e8, 0.0170, 1.15),
    ("swiglu", "backward", "pointwise", 32, 6.8e8, 6.9e8, 0.0340, 1.10),
    ("rotary", "forward", "pointwise", 32, 1.3e8, 1.7e8, 0.0082, 0.90),
    ("rotary", "backward", "pointwise", 32, 1.3e8, 1.7e8, 0.0084, 0.92),
    ("add", "forward", "pointwise", 64, 4.2e7, 5.0e8, 0.0220, 1.02),
    ("cross_entropy", "forward", "loss", 16, 2.0e8, 2.7e8, 0.0190, 1.06),
    ("cross_entropy", "backward", "loss", 16, 1.3e8, 2.7e8, 0.0150, 0.99),
    ("adamw", "optimizer", "optimizer", 1, 1.6e8, 3.1e8, 0.0190, 1.04),
    ("clip", "optimizer", "optimizer", 1, 2.2e7, 4.5e7, 0.0031, 1.20),
    ("load", "data", "data", 4, 0.0, 6.6e4, 0.0006, 1.40),
    ("launching", "other", "launch", 900, 0.0, 0.0, 0.0045, 1.31),
)  # fmt: skip


def predicted() -> Ledger:
    return ledger("predicted", [1.0] * len(OPERATIONS), peak=None, steps=STEPS)


def measured(steps: int = STEPS) -> Ledger:
    return ledger("measured", [each[-1] for each in OPERATIONS], peak=612e6, steps=steps)


def ledger(basis: str, factors: list[float], *, peak: float | None, steps: int) -> Ledger:
    rows = tuple(
        Row(
            operation=name, phase=phase, kind=kind, count=calls, flop=flop, memory_bytes=moved,
            network_bytes=0.0, seconds=seconds * factor, joules=seconds * factor * 41.0,
        )
        for (name, phase, kind, calls, flop, moved, seconds, _), factor in zip(
            OPERATIONS, factors, strict=True
        )
    )  # fmt: skip
    step = sum(row.seconds for row in rows)
    training, whole = step * steps, step * steps * 1.03 + 6.1
    kinds = {
        "weights": 22.5e6, "masters": 45e6, "gradients": 45e6, "optimizer": 90e6,
        "activations": 288e6, "logits": 8.4e6, "workspace": 21e6, "runtime": 66e6,
    }  # fmt: skip
    memory = MemoryPeak(peak=peak) if peak else MemoryPeak(**kinds, peak=sum(kinds.values()))
    return Ledger(
        basis=basis,  # type: ignore[arg-type]
        energy_basis="estimated", rows=rows, step_seconds=step, step_tokens=TOKENS,
        mfu=MODEL.flop_per_token * TOKENS / step / 0.95e12, memory=memory,
        total=Total(
            steps=steps, tokens=TOKENS * steps, seconds=whole, seconds_training=training,
            seconds_start=4.2, seconds_evaluating=training * 0.02, seconds_saving=1.9,
            joules=whole * 41.0, dollars=whole / 3600 * 0.09, carbon_grams=whole * 41 / 3.6e6 * 400,
        ),
    )  # fmt: skip


def doubling(whole: Ledger) -> tuple[Doubling, ...]:
    shares = {
        "compute": 0.36, "memory_bandwidth": 0.11, "launch_overhead": 0.002,
        "memory_capacity": 0.0, "storage": 0.0,
    }  # fmt: skip
    return tuple(
        Doubling(resource=name, step_seconds=whole.step_seconds * (1 - saved), saving=saved)
        for name, saved in shares.items()
    )


def alternatives(whole: Ledger) -> tuple[Alternative, ...]:
    import msgspec

    others = (
        ({}, 1.0, "chosen: the least time of those that fit"),
        ({"micro_batch": 16, "accumulation": 2}, 1.04, "activations leave the cache"),
        ({"micro_batch": 4, "accumulation": 8}, 1.03, "matrix products of fewer rows"),
        ({"compile": True}, 0.97, "faster by 9 s a run, 41 s to compile"),
        ({"recompute": "full"}, 1.29, "a third more arithmetic, 230 MB less"),
        ({"precision": "fp32"}, 2.87, "fp32 products are four times slower"),
    )
    return tuple(
        Alternative(
            layout=msgspec.structs.replace(LAYOUT, **changes),
            step_seconds=whole.step_seconds * factor,
            memory_peak=whole.memory.peak * (1.2 if "micro_batch" in changes else 0.9),
            total_seconds=whole.total.seconds * factor + 41 * bool(changes.get("compile")),
            verdict=verdict,
        )
        for changes, factor, verdict in others
    )


def machine() -> Machine:
    def curve(precision: str, peak: float) -> MatmulCurve:
        return MatmulCurve(
            precision=precision,  # type: ignore[arg-type]
            peak=Fact(value=FlopPerSecond(peak), basis="measured", source="largest of 48 products"),
            half_m=22.0, half_n=31.0, half_k=18.0, launch=Seconds(4e-6), error=0.06, points=(),
        )  # fmt: skip

    def fact(value: object, basis: str = "measured", source: str = "narrows probe") -> Fact:
        return Fact(value=value, basis=basis, source=source)  # type: ignore[arg-type]

    return Machine(
        name="two-cores", fingerprint="b81f40c2", probed_at="2026-03-02T09:14:07Z", torch="2.13.0",
        processor=Processor(
            name="AMD EPYC 9R45", architecture="x86_64",
            instruction_sets=("avx2", "avx512f", "avx512_bf16", "avx512_vnni"), cores_present=96,
            cores_allowed=2, threads_per_core=1, numa_nodes=1, quota=2.0,
            caches={"L1": Bytes(48e3), "L2": Bytes(1e6), "L3": Bytes(32e6)},
        ),
        device=Device(
            kind="cpu", name="AMD EPYC 9R45", threads=2,
            memory=Memory(
                capacity=fact(Bytes(24e9), source="cgroup memory.max"),
                free=fact(Bytes(21.6e9), source="cgroup memory.current"),
                copy=fact(BytesPerSecond(31.4e9)), fresh_pages=fact(BytesPerSecond(3.1e9)),
            ),
            matmul=(curve("fp32", 0.23e12), curve("bf16", 0.95e12), curve("int8", 1.81e12)),
            launch=fact(Seconds(5e-6)),
            power_idle=fact(Watts(12.0), "estimated", "a share of the package, by cores"),
            power_full=fact(Watts(41.0), "estimated", "a share of the package, by cores"),
        ),
        devices=1,
        disk=Disk(
            path="/home/ada", free=fact(Bytes(180e9)), write=fact(BytesPerSecond(0.9e9)),
            read=fact(BytesPerSecond(2.2e9)),
        ),
        electricity=Electricity(
            price=fact(DollarsPerHour(0.09), "assumed", "a rented machine of two cores"),
            carbon=fact(GramsPerKilowattHour(400.0), "assumed", "world's mean"),
            overhead=fact(1.2, "assumed", "a data centre's usual share"),
        ),
        compiler=Compiler(
            available=True, reason="g++ 12.2 found", seconds_per_block=fact(Seconds(5.1))
        ),
        kernel_sets=("torch", "native"),
        links=(
            Link(name="loopback", backend="gloo", bandwidth=fact(BytesPerSecond(1.9e9)),
                 latency=fact(Seconds(62e-6))),
        ),
    )  # fmt: skip


def dataset() -> Dataset:
    return Dataset(
        name="shakespeare", folder="/home/ada/.cache/narrows/data/9f31c2aa",
        digest="9f31c2aa77d0e514", vocabulary=4096, dtype="uint16", tokens_train=1_812_004,
        tokens_validation=95_102, bytes_train=5_997_733, bytes_validation=314_788, documents=38,
        dropped=(Dropped(reason="exact duplicate", documents=1, bytes=2210),),
        shards=(
            Shard(file="train-000.bin", split="train", tokens=1_812_004, documents=36, sha256="0"),
        ),
        end_of_document=0,
    )  # fmt: skip


def metrics(steps: int) -> list[dict[str, object]]:
    noise = np.random.default_rng(3)
    step_seconds = measured().step_seconds
    lines: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "tokens": step * TOKENS,
                "loss": loss_at(step) + float(noise.normal(0, 0.07)),
                "learning_rate": rate_at(step),
                "gradient_norm": 0.6 + 2.0 / step,
                "seconds": step_seconds * float(noise.lognormal(0, 0.02)),
                "tokens_per_s": TOKENS / step_seconds,
                "mfu": 0.55,
                "memory_bytes": 612e6,
                "watts": 41.0,
                "elapsed_s": 4.2 + step * step_seconds * 1.02,
            }
        )
        if step % 50 == 0:
            held = loss_at(step) + 0.05
            bits = held / math.log(2) / 3.31
            lines.append({"step": step, "tokens": step * TOKENS, "validation_loss": held,
                          "bits_per_byte": bits})  # fmt: skip
        if step % 100 == 0:
            lines.append({"step": step, "event": "checkpoint", "message": f"step-{step:08d}"})
        if step == 130:
            lines.append({"step": step, "event": "resume", "message": "from step 100"})
        if step == 208:
            lines.append({"step": step, "event": "slow", "message": "31 % slower than predicted"})
    return lines


def loss_at(step: int) -> float:
    return 3.62 + 4.7 * math.exp(-step / 28) + 0.9 * math.exp(-step / 160)


def rate_at(step: int) -> float:
    if step < 15:
        return 1.2e-3 * step / 15
    return 1.2e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - 15) / 285)))


def samples(steps: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        {"step": step, "prompt": "ROMEO:", "text": "\nAnd the the of to, my lord; and the."}
        for step in range(100, steps, 100)
    ]
    found.append({
        "step": steps, "prompt": "PROSPERO:",
        "text": "\nI have been king of this, and made the sea\nTo hear thy name; the winds are not "
        "so free.\n\nMIRANDA:\nSir, are you not my father? What is this\nThat walks upon the sand, "
        "and weeps for him?",
    })  # fmt: skip
    return found
