from __future__ import annotations

from html import escape
from pathlib import Path

import msgspec
import pytest

from narrows.hardware.fleet import fleet, ladder
from narrows.model.presets import preset
from narrows.plan.fleet.dial import dial
from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question, Wish
from narrows.plan.fleet.variants import Wanted
from narrows.report import outlook
from narrows.report.outlook_plots import bars
from narrows.report.words import same
from narrows.spec.forecast import Forecast
from narrows.spec.job import budget


@pytest.fixture(scope="module")
def seen() -> Forecast:
    return forecast(
        Question(
            name="llama-2-7b", model=preset("llama-2-7b").spec, fleet=fleet("2x8xa100-80gb"),
            batch=64, wanted=Wanted(pipeline=4, tensor=2), budget=budget("1T tokens"),
            against=(fleet("8xh100-sxm"), fleet("rtx-3060")),
            ladder=ladder(fleet("2x8xa100-80gb")),
        )
    )  # fmt: skip


def test_the_page_says_it_all_and_loads_nothing(seen: Forecast, tmp_path: Path) -> None:
    page = tmp_path / "forecast.html"
    outlook.write(seen, page)
    html = page.read_text(encoding="utf-8")
    assert 'src="' not in html and "<link" not in html and "url(" not in html
    for part in ("Where a step goes", "时间去向", "The pipeline", "does not fit", "8xh100-sxm"):
        assert part in html
    for plot in ("bars", "front", "scaling", "pipeline", "roofline"):
        assert html.count(f'data-plot="{plot}"') >= 2, plot


def test_the_page_says_what_a_budget_buys(seen: Forecast) -> None:
    assert seen.dial is not None and "What the budget buys" in outlook.html(seen)
    sized = dial(Wish(
        fleet=fleet("8xa100-80gb"), budget=budget("1 day", "$10"), context=2048, batch=None,
        wanted=Wanted(),
    ))  # fmt: skip
    html = outlook.html(forecast(sized))
    for part in ("$10", "1 d", "a llama of ", "one with the lowest loss", "预算加倍则为"):
        assert part in html, part
    bare = msgspec.structs.replace(seen, dial=None)
    assert "What the budget buys" not in outlook.html(bare)


def test_the_formula_stands_beside_the_curve(seen: Forecast) -> None:
    assert seen.bend is not None
    html = outlook.html(seen)
    assert "T = a n/p + b p" in html and "half of the devices" in html and "一半卡时" in html
    lone = msgspec.structs.replace(seen, bend=None)
    assert "half of the devices" not in outlook.html(lone)
    both = msgspec.structs.replace(seen.bend, devices=77.0, devices_real=55.0)
    html = outlook.html(msgspec.structs.replace(seen, bend=both))
    assert "bends at √(a n/b) = 77 devices" in html and "the model bends at 55" in html


def test_the_moment_of_the_peak_is_said(seen: Forecast) -> None:
    first = msgspec.structs.replace(seen, peak_at="first stage")
    assert "on the first stage, its forwards in flight" in outlook.html(first)
    assert "on the stage of the head, at the loss" in outlook.html(
        msgspec.structs.replace(seen, peak_at="loss")
    )


def test_every_number_says_its_basis_on_the_page(seen: Forecast) -> None:
    html = outlook.html(seen)
    for each in (*seen.answers, *seen.facts):
        assert escape(each.source, quote=False) in html and each.value in html, each.name
    for part in (
        "what is said",
        "what it rests on",
        "规格书",
        "拟合",
        "假定",
        "电能使用效率",
        "网络带宽",
        "显存容量",
    ):
        assert part in html, part


def test_a_single_stage_has_no_timeline(seen: Forecast) -> None:
    spread = msgspec.structs.replace(seen.spread, pipeline=1)
    assert 'data-plot="pipeline"' not in outlook.html(msgspec.structs.replace(seen, spread=spread))


def test_the_roofline_has_a_ring_for_every_operation_that_computes(seen: Forecast) -> None:
    html = outlook.html(seen)
    plot = html[html.index('data-plot="roofline"') :].partition("</svg>")[0]
    computing = [row for row in seen.predicted.rows if row.flop > 0.0]
    assert len(computing) == 12 and plot.count('class="predicted"') == 12
    assert plot.count('class="roof own"') == 1 and "bf16 312" in plot and "2.04" in plot
    # Memory-bound work both ways and the optimizer.
    assert "what only moves bytes (3 operations)" in html


def test_a_technique_is_told_whole_and_whether_it_fits(seen: Forecast) -> None:
    html = outlook.html(seen)
    for part in ("kernels: eager", "kernels: compiled", "optimizer offloaded: host"):
        assert part in html, part
    for part in ("算子：逐个执行", "优化器卸载至：主机", "注意力经由显存", "流水线：零气泡"):
        assert part in html, part
    unfit = sum(each.memory_peak > seen.memory_limit for each in seen.techniques)
    assert unfit and html.count("放不下</span>") >= unfit


def test_a_part_is_one_bar_whatever_its_rows(seen: Forecast) -> None:
    parts = seen.predicted.seconds_by_part()
    gemm = [row.seconds for row in seen.predicted.rows if row.kind == "gemm"]
    assert len(gemm) == 8 and parts["products"] == pytest.approx(sum(gemm))
    assert sum(parts.values()) == pytest.approx(seen.predicted.step_seconds)
    assert list(parts.values()) == sorted(parts.values(), reverse=True)


def test_values_keep_off_the_line_of_the_limit() -> None:
    rows = [(same("a"), 70.0, same("70 GB")), (same("b"), 20.0, same("20 GB"))]
    svg = bars(rows, 488.0, "bytes", limit=100.0, stacked=True)
    first, second = (part.partition(">")[0] for part in svg.split("<text")[2::2])
    # The second ends near the line, so its value stands before it.
    assert "text-anchor" not in first and 'text-anchor="end"' in second
    assert svg.count('class="roof"') == 1
    assert 'class="roof"' not in bars(rows, 488.0, "bytes")
