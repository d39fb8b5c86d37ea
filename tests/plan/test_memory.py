from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.plan.heap import GLIBC, POOL
from narrows.plan.layouts import Layouts, Setting, Shapes
from narrows.plan.memory import MemoryBytes, memory_bytes, saved_bytes
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec, gpt2, llama

GPT2 = gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024)
LAYOUT = Layout(
    micro_batch=4, accumulation=1, precision="bf16", recompute="none", compile=False,
    kernels="native", threads=2, loss_chunk=512,
)  # fmt: skip


def memory(model: ModelSpec = GPT2, **changes: object) -> MemoryBytes:
    return memory_bytes(Shapes.of([model]), Layouts.of(msgspec.structs.replace(LAYOUT, **changes)))


def test_gpt2_has_its_published_number_of_parameters() -> None:
    assert GPT2.parameters == 124_439_808


def test_states_take_their_bytes_a_parameter() -> None:
    bf16, fp32 = memory(), memory(kernels="torch", precision="fp32")
    assert float(bf16.weights[0, 0]) == 2 * GPT2.parameters
    assert float(bf16.masters[0, 0]) == 2 * GPT2.parameters
    assert float(fp32.weights[0, 0]) == 4 * GPT2.parameters
    assert float(fp32.masters[0, 0]) == 0
    assert float(bf16.optimizer[0, 0]) == float(fp32.optimizer[0, 0]) == 8 * GPT2.parameters


def test_the_record_sums_to_its_peak() -> None:
    found = memory().record(0, 0)
    kinds = msgspec.structs.asdict(found)
    peak = kinds.pop("peak")
    assert peak == pytest.approx(sum(kinds.values()))
    assert peak == pytest.approx(float(memory().peak[0, 0]))


def test_a_native_gpt2_block_keeps_ten_streams_a_token() -> None:
    """Stream, qkv (3), attention's output, stream and up (4), 2 bytes each; 4 bytes a
    head for the softmax and 16 for the norms' statistics.
    """
    setting = Setting(precision="bf16", kernels="native", compile=False)
    assert float(saved_bytes(Shapes.of([GPT2]), setting)[0, 0]) == 10 * 768 * 2 + 12 * 4 + 16


def test_torch_keeps_the_activation_too() -> None:
    native = Setting(precision="bf16", kernels="native", compile=False)
    torch = Setting(precision="bf16", kernels="torch", compile=False)
    shapes = Shapes.of([GPT2])
    # Torch's LayerNorm keeps its statistics in bf16, the native one in fp32; native products keep
    # no norm.
    more = saved_bytes(shapes, torch) - saved_bytes(shapes, native)
    assert float(more[0, 0]) == 2 * (4 + 2) * 768 - 2 * 2 * (4 - 2)


layouts = st.fixed_dictionaries(
    {
        "micro_batch": st.integers(1, 64),
        "accumulation": st.integers(1, 4),
        "recompute": st.sampled_from(["none", "full"]),
        "kernels": st.sampled_from(["torch", "native"]),
        "loss_chunk": st.integers(1, 4096),
    }
)
models = st.builds(
    lambda layers, heads, wide: llama(
        layers=layers, width=64 * heads, heads=heads, vocabulary=256 * wide, context=128
    ),
    st.integers(1, 24), st.integers(1, 12), st.integers(1, 64),
)  # fmt: skip


@given(layouts, models)
@settings(deadline=None, max_examples=60)
def test_a_larger_micro_batch_never_needs_less(layout: dict[str, object], model: ModelSpec) -> None:
    larger = {**layout, "micro_batch": int(str(layout["micro_batch"])) + 1}
    assert memory(model, **larger).peak >= memory(model, **layout).peak


@given(layouts, models)
@settings(deadline=None, max_examples=60)
def test_a_larger_loss_chunk_never_needs_less(layout: dict[str, object], model: ModelSpec) -> None:
    larger = {**layout, "loss_chunk": int(str(layout["loss_chunk"])) + 100}
    assert memory(model, **larger).peak >= memory(model, **layout).peak


def test_selective_recompute_lies_between_none_and_full() -> None:
    changes: dict[str, object] = {"kernels": "torch", "micro_batch": 16}
    kept = [
        float(memory(recompute=each, **changes).activations[0, 0])
        for each in ("none", "selective", "full")
    ]
    assert kept[0] > 1.2 * kept[1] > 1.2 * kept[2]


def test_recompute_saves_what_blocks_keep() -> None:
    full = memory(recompute="full", micro_batch=16)
    assert float(full.activations[0, 0]) < 0.4 * float(memory(micro_batch=16).activations[0, 0])


def test_a_heap_that_leaves_holes_holds_more() -> None:
    """Where native kernels, and so the pool, cannot be had."""
    for changes in ({}, {"recompute": "full", "micro_batch": 16}):
        layouts = Layouts.of(msgspec.structs.replace(LAYOUT, **changes))
        shapes = Shapes.of([GPT2])
        pooled, holed = (memory_bytes(shapes, layouts, heap) for heap in (POOL, GLIBC))
        assert float(holed.peak[0, 0]) > 1.05 * float(pooled.peak[0, 0])
        assert float(holed.activations[0, 0]) == 1.12 * float(pooled.activations[0, 0])
        assert float(holed.weights[0, 0]) == float(pooled.weights[0, 0])


def test_a_past_run_corrects_what_comes_and_goes_within_a_step() -> None:
    plain = memory()
    learned = memory_bytes(Shapes.of([GPT2]), Layouts.of(LAYOUT), worn=1.5)
    assert float(learned.activations[0, 0]) == 1.5 * float(plain.activations[0, 0])
    assert float(learned.optimizer[0, 0]) == float(plain.optimizer[0, 0])
