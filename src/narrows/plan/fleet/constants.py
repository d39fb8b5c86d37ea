"""Every number that was fitted, in one place: benchmarks/fit.py fits them to published runs.

What differs between architectures is in the catalogue (`Reach`); these hold for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from narrows.spec.service import EngineName

# Values that a block's memory-bound operations read and write per token, forward and backward
# together, as multiples of the width and of the feed-forward width; and what of it remains where
# kernels are fused by hand, and where by a compiler.
PASSES_WIDTH = 66.1
PASSES_FEED_FORWARD = 6.97
FUSED = 0.519
COMPILED = 0.515
FORWARD_SHARE = 0.35
# What of those multiples of the width every tensor rank repeats without sequence parallelism.
OUTSIDE = 0.369
# Reads and writes of each score where attention writes them to memory, forward and backward.
SCORE_PASSES = 13.1
SCORE_FORWARD_SHARE = 0.45
# Products of scores: small and batched; and off the tensor cores where a head's width in 16 bits
# is no multiple of 8 elements (NVIDIA, Matrix Multiplication Background, 2023).
SCORE_REACH = 0.6
MISALIGNED = 11.3
# Products of 4-bit operands are at most so many times as quick as those of 8 bits.
FOUR_BITS = 1.52
# Attention's rate falls with the head's width below 128.
HEAD_WIDTH_POWER = 0.125
# Bytes a logit takes through the loss.
LOGIT_BYTES = 20.0
# What training's collectives inside a domain reach of large sums alone (Reach.links), and those
# between hosts of the data sheet's bandwidth.
LINK = 1.067
NETWORK = 0.859
# What of a data-parallel collective can hide behind computation, and what of a plain all-reduce
# of gradients, which starts only once the last micro-batch runs backward, cannot.
OVERLAP = 0.849
# What of the hidden part of sharded parameters' collectives slows what they hide behind, and the
# bytes in which gradients are reduced there.
CONTENTION = 0.249
REDUCED_BYTES = 4.0
# What of tensor-parallel collectives stacks with sequence parallelism hide behind products.
TENSOR_OVERLAP = 0.53
EXPOSED_REDUCTION = 0.531
# What of the hops between stages is not hidden where stages are cut into pieces.
HOPS_SHOWN = 0.437
# Seconds that DeepSpeed's pipeline engine idles at a block of a micro-batch, there and back. Fitted
# to BLOOM's runs alone it says those of MT-NLG within 2 %.
HOST_BLOCK = 0.0107
# Products of many small experts beside a single one of their size; reads and writes of a token's
# width for each expert that it is sorted to, forward and backward.
EXPERT_REACH = 0.438
PASSES_EXPERT = 11.2
# What of the exchange of tokens with their experts is not hidden.
EXPERT_SHOWN = 0.716
# Bytes that the optimizer reads and writes for a parameter, its moments in 32 bits.
OPTIMIZER_BYTES = 28.0
# Where the optimizer is offloaded: bytes a second that one process which has the host to itself
# reads and writes in its memory. Threads of n processes displace each other: each gets 1/n² of it.
# Fitted to 7 billion parameters on eight A800s (gist of chenyaofo, 2024), it says 2.6 s of a
# step of 3 billion on two A100s, of which all took 2.4 to 3.1 (DeepSpeed, pull request 7474).
HOST_MEMORY = 160e9
# Bytes of a parameter beside the optimizer's own: its gradient's norm and clipping, and the weight
# in 16 bits (assumed from deepspeed/runtime/zero/stage_1_and_2.py).
HOST_PASSES = 14.0
# Devices that share a link to the host (NVIDIA, DGX A100 system architecture, 2020), and bytes a
# second of a host's disks for each device (four NVMe drives, assumed).
HOST_LINK_SHARED = 2.0
HOST_DISK = 3e9
# What a step takes beyond the sum of its parts: the host and data; and how far a device's step
# strays, of which all wait for the slowest.
WAITING = 0.0211
DEVIATION = 0.0233

# Memory. What an allocator reserves over what is in use.
ALLOCATOR = 1.1
# Streams of the width that a block keeps beside those before and behind its norms: two masks of
# dropout, a byte each (arXiv:2205.05198).
STREAMS_MORE = 1.0
# Bytes of a logit while the loss is taken: fp32 and its gradient beside 16 bits.
LOGIT_MEMORY = 10.0
# Streams in flight beside what is kept; libraries and kernels, and communicators' buffers.
WORKSPACE_STREAMS = 6.0
RUNTIME_BYTES = 1.0e9
COMMUNICATOR_BYTES = 2.0e9

# Serving. Shares of the memory's bandwidth that reading weights, keys and values, and experts reach
# in whole decode steps.
SERVING_MEMORY = 0.795
SERVING_CACHE = 0.701
SERVING_EXPERTS = 0.916
# Experts that tokens choose are not all alike: n tokens meet as many as n to this power that choose
# by chance.
SERVING_DRAWS = 0.946
# Products of whole prompts beside those of training; many small ones of experts beside a large one;
# of what formats of 8 and 4 bits promise over 16, what is kept; one query's scores over a cache.
SERVING_MATMUL = 1.12
SERVING_GROUPED = 0.351
SERVING_EIGHT = 0.968
SERVING_FOUR = 0.909
SERVING_SCORES = 0.58
# Values of the width that a block of a prefill reads and writes for a token.
SERVING_PASSES = 8.97
# Seconds to start a block's kernels, what choosing experts and latent attention add, and one by one
# instead of as a graph; to bring operands into narrow formats, of all products and of experts; of
# a step, and of each request in it.
SERVING_BLOCK = 1.02e-05
SERVING_ROUTING = 7.5e-06
SERVING_LATENT = 2.39e-05
SERVING_EAGER = 0.00169
SERVING_NARROWED = 1.63e-05
SERVING_NARROWED_EXPERTS = 4.13e-05
SERVING_STEP = 0.00102
SERVING_SEQUENCE = 4.58e-06
# Seconds of a reduction that reads all ranks' parts at once, what each rank adds, and what one that
# scatters and gathers takes more before a byte moves.
SERVING_REDUCE = 3.18e-06
SERVING_REDUCE_RANK = 2.91e-07
SERVING_REDUCE_TWICE = 4.44e-05
# Seconds that a step which a prompt joins takes more, and to hand a prompt's keys and values over.
SERVING_JOIN = 0.00168
SERVING_HANDED = 0.134
# Kernels of a block without experts, and those that latent attention adds, beside those that
# experts add.
SERVING_LAUNCHED = 0.15
SERVING_LAUNCHED_LATENT = 0.868
# Of a device's memory, what engines use, and of that their libraries and kernels; tokens of the
# prompts that they compute in one pass where nothing is decoded (vLLM, gpu_memory_utilization and
# max_num_batched_tokens, 2025).
SERVING_HELD = 0.9
SERVING_RUNTIME = 2.2e9
SERVING_BATCHED = 8192.0
# Of narrows on a processor, without torch: Python, and what a step holds.
SERVING_RUNTIME_HERE = 150e6


class Engine(NamedTuple):
    """Seconds beside the model's: of receiving a `request`, of a `token` of its text, of a `step`,
    a `block` and a request in it (`sequence`), of the `launch` of a kernel of a prompt's pass, and
    of a step's decision for each further group that attends to its own requests (`gathered`).

    A `prompt`'s pass in multiples of the common one, steps that the first token is held back for,
    and how much longer those wait who all come at once (`bunched`). What is `reserved` of an
    answer's keys and values beforehand; these have SERVING_HELD of the memory less the weights, or
    a share of the `rest` that the weights leave (TensorRT-LLM's free_gpu_memory_fraction; 0.85 is
    where published requests begin to queue), and at least `cache_bits` each. `runtime`: bytes of
    its own. Tokens of a prompt that one step computes, unless asked for otherwise: `chunk`, or all.
    """

    request: float = 0.0
    token: float = 0.0
    step: float = 0.0
    block: float = 0.0
    sequence: float = 0.0
    prompt: float = 1.0
    held_back: float = 1.0
    launch: float = 0.0
    gathered: float = 0.0
    bunched: float = 1.0
    reserved: float = 1.0
    rest: float | None = None
    runtime: float = SERVING_RUNTIME
    chunk: int | None = None
    cache_bits: float = 4.0


# "bare": a loop without a server. "narrows": this one, measured by benchmarks/serve.py beside its
# own steps (LOG.md); a request comes in the middle of a step.
ENGINES: dict[EngineName, Engine] = {
    "bare": Engine(),
    "narrows": Engine(
        request=0.001,
        step=0.0002,
        sequence=7.5e-05,
        held_back=0.5,
        rest=1.0,
        runtime=SERVING_RUNTIME_HERE,
        chunk=128,
        cache_bits=8.0,
    ),
    "vllm": Engine(
        0.00937, 2.53e-06, 0.000298, 2.45e-05, 1.62e-05, 1.22, 1.52, 0.000482, 0.00797, 1.22, 0.5
    ),
    "trtllm": Engine(
        0.00593, 8e-07, 0.000842, 3.36e-06, 6.82e-06, 1.0, 2.11, 0.000965, 0.264, 1.25, 1.0, 0.85
    ),
    "sglang": Engine(
        0.015, 5.76e-06, 0.0026, 1.4e-05, 4.13e-05, 1.27, 19.2, 0.000417, 0.01, 3.91, 0.5
    ),
}
