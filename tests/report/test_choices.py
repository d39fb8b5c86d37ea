import msgspec
import pytest

from narrows.report.choices import choices, considered, family, shown
from narrows.report.run import read
from narrows.report.words import Phrase, same
from narrows.spec.exchange import LocalSteps
from narrows.spec.model import GELU, LayerNorm, Learned, gpt2


@pytest.fixture
def plan(run_folder):
    return read(run_folder).plan


def test_each_choice_has_its_value_and_its_why(plan):
    found = {choice.name: choice for choice in choices(plan)}
    assert found["precision"].value.en == "bf16"
    assert found["optimizer.learning_rate"].value.en == "0.0012"
    assert found["optimizer.learning_rate"].label.zh == "学习率"
    assert "11.2M parameters: 8 layers" in found["model"].value.en
    assert all(choice.why.en for choice in found.values())


def test_the_whole_layout_is_told_even_without_a_why(plan):
    bare = msgspec.structs.replace(plan, why={"something.else": "because"})
    found = choices(bare)
    assert (found[0].value.en, found[0].why) == ("", same("because"))
    assert {choice.name for choice in found} >= {
        "layout.micro_batch",
        "layout.threads",
        "layout.loss_chunk",
    }


def test_reasons_and_verdicts_are_in_both_languages(plan):
    first = msgspec.structs.replace(plan.alternatives[0], verdict="nothing else fits memory")
    why = {"layout.threads": "of 4 allowed"}
    known = msgspec.structs.replace(plan, why=why, alternatives=(first,))
    assert choices(known)[0].why == Phrase("of 4 allowed", "共允许 4 个")
    assert considered(known)[0].verdict.zh == "其余都放不进内存"


def test_an_unusual_exchange_of_gradients_is_told(plan):
    local_steps = msgspec.structs.replace(plan, exchange=LocalSteps(every=10))
    found = {choice.name: choice for choice in choices(local_steps)}
    assert found["exchange"].value.en.startswith("local_steps (every 10")
    assert found["exchange"].label.en == "gradients"
    assert "exchange" not in {choice.name for choice in choices(plan)}


def test_layouts_are_told_by_their_difference_and_the_chosen_is_first(plan):
    rows = considered(plan)
    assert [row.chosen for row in rows] == [True, False, False, False, False, False]
    assert rows[0].difference.en == "as chosen"
    assert "micro-batch 4, accumulation 8" in [row.difference.en for row in rows]
    assert [row.total_seconds for row in rows[1:]] == sorted(row.total_seconds for row in rows[1:])


def test_the_chosen_layout_is_added_where_the_plan_left_it_out(plan):
    others = tuple(each for each in plan.alternatives if each.layout != plan.layout)
    rows = considered(msgspec.structs.replace(plan, alternatives=others))
    assert rows[0].chosen and rows[0].step_seconds == plan.predicted.step_seconds


def test_families(plan):
    other = gpt2(layers=2, width=64, heads=2, vocabulary=256, context=64)
    assert (family(plan.model), family(other)) == ("Llama", "GPT-2")
    mixed = msgspec.structs.replace(plan.model, positions=Learned(), feed_forward=GELU())
    assert family(msgspec.structs.replace(mixed, norm=LayerNorm())) == "GPT-2"
    assert family(msgspec.structs.replace(plan.model, feed_forward=GELU())) == ""


def test_values_as_text():
    assert [shown(value) for value in (True, 4096, 1e-5, None, "fp32")] == [
        "yes", "4,096", "1×10⁻⁵", "", "fp32"
    ]  # fmt: skip
    assert shown({"type": "rotary", "base": 10000.0}) == "rotary (base 10,000)"


def test_a_pipeline_s_schedule_is_not_that_of_the_learning_rate(plan):
    why = {"layout.schedule": "it fits", "schedule": "it is usual"}
    told = {each.name: each.label.zh for each in choices(msgspec.structs.replace(plan, why=why))}
    assert (told["layout.schedule"], told["schedule"]) == ("调度", "学习率计划")
