"""A machine as data: what it has and what it was measured to do, each fact with its basis."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from narrows.spec.record import Record
from narrows.spec.units import (
    Bytes,
    BytesPerSecond,
    DollarsPerHour,
    FlopPerSecond,
    GramsPerKilowattHour,
    Seconds,
    Watts,
)

Basis = Literal["measured", "datasheet", "fitted", "estimated", "assumed"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
CachePrecision = Literal["bf16", "int8"]
KernelSet = Literal["torch", "native"]
Direction = Literal["forward", "dgrad", "wgrad"]
BlockKind = Literal["gpt2", "llama"]
Q = TypeVar("Q")


class Fact(Record, Generic[Q]):
    """A value, how it is known, and from where."""

    value: Q
    basis: Basis
    source: str


class MatmulPoint(Record):
    """Seconds of one (m,k) @ (k,n) product.

    `direction` tells how the operands lie in memory: x @ w.T forward, g @ w for the input's
    gradient (dgrad), g.T @ x for the weight's (wgrad).
    """

    m: int
    n: int
    k: int
    seconds: float
    direction: Direction = "forward"


class MatmulCurve(Record):
    """seconds(m,n,k) = launch + 2mnk / (peak · m/(m+half_m) · n/(n+half_n) · k/(k+half_k)).

    `points` are what the four constants were fitted to; `error` is the fit's median relative error.
    """

    precision: Precision
    peak: Fact[FlopPerSecond]
    half_m: float
    half_n: float
    half_k: float
    launch: Seconds
    error: float
    points: tuple[MatmulPoint, ...]


class AttentionPoint(Record):
    """Seconds of causal attention over `rows` = B·N heads of T positions and width H."""

    rows: int
    positions: int
    head_width: int
    forward: float
    backward: float


class AttentionCurve(Record):
    """Measured causal attention by one kernel set."""

    kernels: KernelSet
    precision: Precision
    points: tuple[AttentionPoint, ...]


class KernelPoint(Record):
    """Seconds of a memory-bound operation on `elements` of its main operand."""

    elements: int
    forward: float
    backward: float


class KernelCurve(Record):
    """Measured memory-bound operation (a name of `kernels.interface.OPERATIONS`) at a few sizes."""

    operation: str
    kernels: KernelSet
    precision: Precision
    compiled: bool
    points: tuple[KernelPoint, ...]


class BlockPoint(Record):
    """Median seconds of one block, forward and backward, run in a stack as a model runs it.

    The stream is [sequences, positions, width]; the rest are the habits of the curve's kind.
    """

    width: int
    head_width: int
    sequences: int
    positions: int
    seconds: float


class BlockCurve(Record):
    """Whole blocks of one kind by one kernel set: what single operations leave out shows here."""

    kind: BlockKind
    kernels: KernelSet
    precision: Precision
    points: tuple[BlockPoint, ...]


class StreamedPoint(Record):
    """Seconds of one (m,k) @ (k,n) product whose weights are among `working_set` bytes of weights
    that are read in turn, as the products of a model read theirs.
    """

    m: int
    n: int
    k: int
    working_set: Bytes
    seconds: float


class StreamedCurve(Record):
    """Measured products of few rows, where reading the weights is what takes the time.

    `making` is what the first product of a new shape takes besides, once in a process.
    """

    precision: Precision
    points: tuple[StreamedPoint, ...]
    making: Seconds = Seconds(0.0)


class CachedPoint(Record):
    """Seconds of attention of `queries` new positions to all `keys` of the cache, theirs included;
    `group` query heads share each of `kv_heads`. Caches of `working_set` bytes are used in turn.
    """

    sequences: int
    kv_heads: int
    group: int
    head_width: int
    queries: int
    keys: int
    seconds: float
    working_set: Bytes = Bytes(0)


class CachedCurve(Record):
    """Measured attention over a cache: of whole prompts, and of single positions."""

    precision: Precision
    points: tuple[CachedPoint, ...]


class ExtendedPoint(Record):
    """Seconds of one block, forward over the cache of one sequence, of the `layers` that ran."""

    width: int
    head_width: int
    layers: int
    queries: int
    keys: int
    seconds: float


class ExtendedCurve(Record):
    """Whole blocks of one kind as a model that answers runs them."""

    kind: BlockKind
    precision: Precision
    points: tuple[ExtendedPoint, ...]


class PackedPoint(Record):
    """Seconds of a step of a decoder whose matrices are packed in groups: `queries` new positions
    of each of `sequences` behind `past` ones, kept in `cache`, through `layers` of llama's habits,
    heads 64 wide, of which `group` share their keys and values.
    """

    layers: int
    width: int
    sequences: int
    queries: int
    past: int
    seconds: float
    cache: CachePrecision = "bf16"
    group: int = 1


class PackedCurve(Record):
    """Such steps with codes of so many bits."""

    bits: int
    points: tuple[PackedPoint, ...]


class BandwidthPoint(Record):
    """Rate at which a working set of this size is read and written."""

    working_set: Bytes
    rate: BytesPerSecond


class Memory(Record):
    """Memory that this process may use, and how fast it is."""

    capacity: Fact[Bytes]
    free: Fact[Bytes]
    copy: Fact[BytesPerSecond]
    curve: tuple[BandwidthPoint, ...] = ()
    fresh_pages: Fact[BytesPerSecond] | None = None


class Device(Record):
    """What computes: the processor as a whole, or one accelerator, which a `host_link` joins to its
    host's memory, as quick in one direction as in the other.
    """

    kind: Literal["cpu", "cuda", "rocm", "xpu", "mps"]
    name: str
    threads: int
    memory: Memory
    matmul: tuple[MatmulCurve, ...] = ()
    attention: tuple[AttentionCurve, ...] = ()
    kernels: tuple[KernelCurve, ...] = ()
    blocks: tuple[BlockCurve, ...] = ()
    streamed: tuple[StreamedCurve, ...] = ()
    cached: tuple[CachedCurve, ...] = ()
    extended: tuple[ExtendedCurve, ...] = ()
    packed: tuple[PackedCurve, ...] = ()
    launch: Fact[Seconds] | None = None
    host_link: Fact[BytesPerSecond] | None = None
    power_idle: Fact[Watts] | None = None
    power_full: Fact[Watts] | None = None


class Processor(Record):
    """The host's processor and how much of it is allowed.

    Cores are what the system schedules on (hardware threads); `quota` is a container's, in cores.
    """

    name: str
    architecture: str
    instruction_sets: tuple[str, ...]
    cores_present: int
    cores_allowed: int
    threads_per_core: int
    numa_nodes: int
    quota: float | None = None
    caches: dict[str, Bytes] = {}


class Disk(Record):
    """Storage where runs and caches are kept."""

    path: str
    free: Fact[Bytes]
    write: Fact[BytesPerSecond]
    read: Fact[BytesPerSecond]


Collective = Literal[
    "all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "send", "shift"
]
"""What processes tell each other; `send` is one rank's message to the next while the others wait,
`shift` every rank's to the next at once.
"""


class CollectivePoint(Record):
    """Seconds of one collective over `ranks`, each of which puts `message` bytes in.

    Of reduce_scatter and all_to_all that is what is then divided among the ranks, of all_gather the
    share that each rank sends to all.
    """

    operation: Collective
    ranks: int
    message: Bytes
    seconds: float


class Link(Record):
    """What joins `ranks` processes on `hosts` machines.

    `together` is how many times as fast all of them at once compute as one process that has one
    machine to itself: 1 where they share its cores, near `hosts` where each has cores of its own.
    """

    name: str
    backend: Literal["gloo", "nccl", "xccl", "mpi"]
    ranks: int = 2
    hosts: int = 1
    bandwidth: Fact[BytesPerSecond]
    latency: Fact[Seconds]
    together: Fact[float] | None = None
    points: tuple[CollectivePoint, ...] = ()


class Electricity(Record):
    """What an hour of this machine costs, in money and in carbon."""

    price: Fact[DollarsPerHour]
    carbon: Fact[GramsPerKilowattHour]
    overhead: Fact[float]


class Compiler(Record):
    """torch.compile here: whether it works, what a graph of one block costs once, and how many
    times faster that block's forward and backward then run.
    """

    available: bool
    reason: str
    seconds_per_block: Fact[Seconds] | None = None
    speedup: Fact[float] | None = None


class Machine(Record):
    """Everything the cost model needs to know; `fingerprint` names the hardware it is true of.

    `other_load` is the number of cores that other work kept busy while this was measured.
    """

    name: str
    fingerprint: str
    probed_at: str
    torch: str
    processor: Processor
    device: Device
    devices: int
    disk: Disk
    electricity: Electricity
    compiler: Compiler
    kernel_sets: tuple[KernelSet, ...]
    links: tuple[Link, ...] = ()
    calibration: dict[str, float] = {}
    other_load: Fact[float] | None = None
