from __future__ import annotations

import msgspec
import pytest

from narrows.plan.layouts import Layouts, Shapes
from narrows.plan.operation import Operation, Pointwise
from narrows.plan.operations import evaluation_operations, step_operations
from narrows.spec.layout import Layout
from narrows.spec.model import ModelSpec, gpt2, llama

GPT2 = gpt2(layers=12, width=768, heads=12, vocabulary=50257, context=1024)
SMOL = llama(
    layers=30, width=576, heads=9, kv_heads=3, feed_forward_width=1536, vocabulary=49152,
    context=1024,
)  # fmt: skip
LAYOUT = Layout(
    micro_batch=2, accumulation=3, precision="bf16", recompute="none", compile=False,
    kernels="native", threads=2, loss_chunk=512,
)  # fmt: skip


def operations(model: ModelSpec, **changes: object) -> tuple[Operation, ...]:
    layout = msgspec.structs.replace(LAYOUT, **changes)
    return step_operations(Shapes.of([model]), Layouts.of(layout))


def flop(found: tuple[Operation, ...], *kinds: str) -> float:
    return sum(float((o.count * o.flop)[0, 0]) for o in found if o.kind in kinds)


def counts(found: tuple[Operation, ...], name: str) -> float:
    return sum(float(operation.count.sum()) for operation in found if operation.name == name)


@pytest.mark.parametrize("model", [GPT2, SMOL])
def test_products_are_six_flop_a_weight_and_token(model: ModelSpec) -> None:
    """By hand: forward 2, and 2 for each of both gradients, for every weight in a product."""
    D, F, NH = model.width, model.feed_forward_width, model.heads * model.head_width
    up = F if model is GPT2 else 2 * F
    weights = model.layers * (D * model.qkv_width + NH * D + D * up + F * D) + model.vocabulary * D
    tokens = 2 * 3 * 1024
    assert flop(operations(model), "gemm") == pytest.approx(6.0 * weights * tokens)


def test_gpt2_forward_flop_of_one_token_by_hand() -> None:
    """2 · (12 · (768 · 2304 + 768² + 2 · 768 · 3072) + 50257 · 768) for the products and
    2 · 12 · 768 · 1024 for half of all scores, twice.
    """
    forward = tuple(o for o in operations(GPT2) if o.phase == "forward")
    per_token = flop(forward, "gemm", "attention") / (2 * 3 * 1024)
    assert per_token == 2 * 12 * 7_077_888 + 2 * 50257 * 768 + 2 * 12 * 768 * 1024


def test_the_model_counts_what_training_must_do_and_flash_attention_does_more() -> None:
    """The model's own figure counts attention's backward pass twice its forward pass; without
    stored scores it is five halves.
    """
    found = operations(SMOL)
    tokens = 2 * 3 * 1024
    attention = flop(found, "attention")
    counted = flop(found, "gemm") + attention * (1 + 2) / (1 + 2.5)
    assert counted == pytest.approx(SMOL.flop_per_token * tokens)


def test_recompute_runs_the_blocks_forward_pass_once_more() -> None:
    plain, again = operations(GPT2), operations(GPT2, recompute="full")
    forward = tuple(o for o in plain if o.phase == "forward" and o.name != "head")
    extra = flop(again, "gemm", "attention") - flop(plain, "gemm", "attention")
    assert extra == pytest.approx(flop(forward, "gemm", "attention"))
    assert counts(again, "cross_entropy") == counts(plain, "cross_entropy")


def test_selective_recompute_runs_no_product_twice() -> None:
    plain = operations(SMOL, kernels="torch")
    again = operations(SMOL, kernels="torch", recompute="selective")
    assert flop(again, "gemm", "attention") == flop(plain, "gemm", "attention")
    for name in ("swiglu", "rotary"):
        forward = sum(float(o.count.sum()) for o in plain if (o.name, o.phase) == (name, "forward"))
        assert counts(again, name) == counts(plain, name) + forward


def test_the_loss_is_cut_into_chunks_that_cover_all_positions() -> None:
    found = operations(GPT2, loss_chunk=500)
    (loss,) = (o for o in found if o.name == "cross_entropy")
    assert float(loss.count[0, 0]) == 3 * 5
    assert isinstance(loss.work, Pointwise)
    covered = float((loss.count * loss.work.elements)[0, 0])
    assert covered == pytest.approx(3 * 2 * 1024 * 50257)


def test_gradients_are_summed_only_where_there_are_several_micro_batches() -> None:
    assert counts(operations(GPT2), "accumulate") == 3
    assert counts(operations(GPT2, accumulation=1), "accumulate") == 0


def test_only_torch_turns_queries_in_an_operation_of_its_own() -> None:
    assert counts(operations(SMOL, kernels="torch"), "rotary") > 0
    assert counts(operations(SMOL), "rotary") == 0
    assert counts(operations(GPT2, kernels="torch"), "rotary") == 0


def test_biases_cost_a_sum_over_rows_each() -> None:
    assert counts(operations(GPT2), "column_sum") == 4 * 12 * 3
    assert counts(operations(SMOL), "column_sum") == 0


def test_dropout_is_counted_where_the_model_has_it() -> None:
    wet = msgspec.structs.replace(GPT2, dropout=0.1)
    assert counts(operations(wet), "dropout") == 2 * 3 * (1 + 2 * 12)
    assert counts(operations(GPT2), "dropout") == 0


def test_adamw_moves_28_bytes_a_parameter_beside_fp32_sums() -> None:
    (update,) = (o for o in operations(GPT2) if o.name == "adamw")
    assert float(update.memory_bytes[0, 0]) == GPT2.parameters * (4 + 8 + 16)


def test_evaluation_is_the_forward_pass_of_one_micro_batch() -> None:
    found = evaluation_operations(Shapes.of([GPT2]), Layouts.of(LAYOUT))
    assert {operation.phase for operation in found} == {"forward"}
    forward = tuple(o for o in operations(GPT2) if o.phase == "forward")
    assert 3 * flop(found, "gemm") == pytest.approx(flop(forward, "gemm"))
