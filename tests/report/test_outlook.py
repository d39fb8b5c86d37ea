from __future__ import annotations

from pathlib import Path

import pytest

from narrows.hardware.fleet import fleet
from narrows.model.presets import preset
from narrows.plan.fleet.forecast import Question, forecast
from narrows.plan.fleet.variants import Wanted
from narrows.report import outlook
from narrows.spec.forecast import Forecast


@pytest.fixture(scope="module")
def seen() -> Forecast:
    return forecast(
        Question(
            name="llama-2-7b", model=preset("llama-2-7b").spec, fleet=fleet("2x8xa100-80gb"),
            batch=64, wanted=Wanted(pipeline=4, tensor=2), tokens=1e12,
            against=(fleet("8xh100-sxm"), fleet("rtx-3060")),
        )
    )  # fmt: skip


def test_the_page_says_it_all_and_loads_nothing(seen: Forecast, tmp_path: Path) -> None:
    page = tmp_path / "forecast.html"
    outlook.write(seen, page)
    html = page.read_text(encoding="utf-8")
    assert 'src="' not in html and "<link" not in html and "url(" not in html
    for part in ("Where a step goes", "时间去向", "The pipeline", "does not fit", "8xh100-sxm"):
        assert part in html
    for plot in ("bars", "front", "scaling", "pipeline"):
        assert html.count(f'data-plot="{plot}"') >= 2, plot


def test_a_single_stage_has_no_timeline(seen: Forecast) -> None:
    import msgspec

    spread = msgspec.structs.replace(seen.spread, pipeline=1)
    assert 'data-plot="pipeline"' not in outlook.html(msgspec.structs.replace(seen, spread=spread))
