"""Every number that was fitted, in one place: benchmarks/fit.py fits them to published runs.

What differs between architectures is in the catalogue (`Reach`); these hold for all of them.
"""

from __future__ import annotations

# Values that a block's memory-bound operations read and write per token, forward and backward
# together, as multiples of the width and of the feed-forward width; and what of it remains where
# kernels are fused by hand, and where by a compiler.
PASSES_WIDTH = 91.8
PASSES_FEED_FORWARD = 6.47
FUSED = 0.592
COMPILED = 0.484
FORWARD_SHARE = 0.35
# What of those multiples of the width every tensor rank repeats without sequence parallelism.
OUTSIDE = 0.492
# Reads and writes of each score where attention writes them to memory, forward and backward.
SCORE_PASSES = 13.4
SCORE_FORWARD_SHARE = 0.45
# Products of scores: small and batched; and off the tensor cores where a head's width in 16 bits
# is no multiple of 8 elements (NVIDIA, Matrix Multiplication Background, 2023).
SCORE_REACH = 0.6
MISALIGNED = 15.9
# Products of 4-bit operands are at most so many times as quick as those of 8 bits.
FOUR_BITS = 1.57
# Attention's rate falls with the head's width below 128.
HEAD_WIDTH_POWER = 0.267
# Bytes a logit takes through the loss.
LOGIT_BYTES = 20.0
# Shares of the data sheet's bandwidth that a collective reaches inside a domain and between hosts.
LINK = 0.776
NETWORK = 0.771
# What of a data-parallel collective can hide behind computation, and what of a plain all-reduce
# of gradients, which starts only once the last micro-batch runs backward, cannot.
OVERLAP = 0.891
# What of the hidden part of sharded parameters' collectives slows what they hide behind, and the
# bytes in which gradients are reduced there.
CONTENTION = 0.16
REDUCED_BYTES = 4.0
# What of tensor-parallel collectives stacks with sequence parallelism hide behind products.
TENSOR_OVERLAP = 0.523
EXPOSED_REDUCTION = 0.54
# What of the hops between stages is not hidden where stages are cut into pieces.
HOPS_SHOWN = 0.428
# Products of many small experts beside a single one of their size; reads and writes of a token's
# width for each expert that it is sorted to, forward and backward.
EXPERT_REACH = 0.503
PASSES_EXPERT = 11.3
# What of the exchange of tokens with their experts is not hidden.
EXPERT_SHOWN = 0.651
# Bytes that the optimizer reads and writes for a parameter.
OPTIMIZER_BYTES = 28.0
# A step takes this times the sum of its parts: stragglers, host and data.
JITTER = 1.06

# Memory. What an allocator reserves over what is in use.
ALLOCATOR = 1.1
# Bytes of the optimizer's state for a parameter: fp32 masters and two moments beside 16-bit
# weights (arXiv:1910.02054).
STATE_BYTES = 12.0
# Streams of the width that a block keeps: before and behind both norms.
STREAMS_KEPT = 5.0
# Bytes of a logit while the loss is taken: fp32 and its gradient beside 16 bits.
LOGIT_MEMORY = 10.0
# Streams in flight beside what is kept; libraries and kernels, and communicators' buffers.
WORKSPACE_STREAMS = 6.0
RUNTIME_BYTES = 1.0e9
COMMUNICATOR_BYTES = 2.0e9

# Serving. The share of the memory's bandwidth that reading weights and caches reaches; seconds to
# start a block and a step, to reduce across ranks, and of a request outside of the model.
SERVING_MEMORY = 0.871
SERVING_NARROW = 1.04
SERVING_PASSES = 7.63
SERVING_BLOCK = 2.44e-05
SERVING_STEP = 0.00211
SERVING_REDUCE = 1.27e-05
SERVING_REDUCE_RANK = 2.27e-07
SERVING_REQUEST = 0.105
# Of the requests that are served at a time, those whose prompts arrive together before one's own.
SERVING_TOGETHER = 0.0736
