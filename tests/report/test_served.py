from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import msgspec
import pytest

from narrows.hardware.fleet import fleet
from narrows.model.presets import preset
from narrows.plan.fleet.service import service
from narrows.plan.fleet.ways import Demand
from narrows.report import served
from narrows.report.served_plots import front, sweep
from narrows.report.served_tables import placement
from narrows.spec.service import Guesses, Limits, Placement, Requests, Service, Swept

PLACED = Placement(replicas=4, tensor=2, groups=1, apart=0, weight_bits=16.0, cache_bits=16.0)


def asked(**changes: Any) -> Service:
    known = {
        "name": "llama-3.1-8b", "model": preset("llama-3.1-8b").spec, "fleet": fleet("4xl40s"),
        "requests": Requests(prompt=1024, answer=256, rate=4.0),
        "limits": Limits(first_token_s=0.9, per_token_s=0.04, percent=99),
        "smaller": fleet("2xl40s"), "larger": (fleet("8xl40s"),),
    }  # fmt: skip
    return service(Demand(**{**known, **changes}))


@pytest.fixture(scope="module")
def seen() -> Service:
    return asked()


def test_the_page_says_it_all_and_loads_nothing(seen: Service, tmp_path: Path) -> None:
    page = tmp_path / "served.html"
    served.write(seen, page)
    html = page.read_text(encoding="utf-8")
    assert 'src="' not in html and "<link" not in html and "url(" not in html
    for part in (
        "llama-3.1-8b served by 4 × NVIDIA L40S", "4 requests a second", "first token, p99",
        "at most 900", "How long requests wait", "请求要等多久", "Where a prompt goes",
        "Where a decode step goes", "Throughput against latency", "What a change is worth",
        "Layouts that lose", "落选原因", "half the devices", "设备减半",
    ):  # fmt: skip
        assert part in html, part
    for plot, often in (("bars", 5), ("roofline", 2), ("sweep", 1)):
        assert html.count(f'data-plot="{plot}"') == 2 * often, plot
    for each in (*seen.answers, *seen.facts):
        assert escape(each.source, quote=False) in html and each.value in html, each.name


def test_limits_are_lines_and_without_them_there_are_none(seen: Service) -> None:
    html = served.html(seen)
    without = served.html(msgspec.structs.replace(seen, limits=Limits()))
    lines = [text.count('class="roof"') for text in (html, without)]
    # Of two figures and the sweep, each drawn wide and narrow.
    assert lines[0] - lines[1] == 6
    assert without.count("no limit was given") == 2 and "no limit was given" not in html


def test_rooflines_have_a_ring_for_each_operation_that_computes(seen: Service) -> None:
    html = served.html(seen)
    _, prompt, _, step, _ = html.split('data-plot="roofline"')
    for plot, rows in ((prompt, seen.prefill), (step, seen.decode)):
        computing = sum(row.flop > 0.0 for row in rows)
        assert plot.partition("</svg>")[0].count('class="predicted"') == computing >= 4
    assert "bf16 362" in html


def test_the_front_is_what_no_other_beats() -> None:
    def point(each: float, tokens: float) -> Swept:
        return Swept(placement=PLACED, concurrency=1.0, first_token_s=0.1, per_token_s=each,
                     tokens_per_s=tokens)  # fmt: skip

    best = (point(0.01, 100.0), point(0.02, 300.0))
    others = (point(0.02, 200.0), point(0.03, 300.0), point(0.04, 50.0))
    assert front((*others, *best)) == set(best)


@pytest.mark.parametrize("width", [328.0, 850.0])
def test_all_loads_and_the_plan_are_drawn(seen: Service, width: float) -> None:
    svg = sweep(seen, width)
    leading = len(front(seen.sweep))
    assert svg.count('class="predicted front"') == leading > 2
    assert svg.count('class="predicted"') == len(seen.sweep) - leading
    assert svg.count('class="chosen"') == 1 and svg.count('class="load"') == 3
    assert "nan" not in svg and "inf" not in svg


def test_why_each_layout_loses_is_said_in_both_languages(seen: Service) -> None:
    html = served.html(seen)
    reasons = {seen.loses(way).reason for way in seen.others}
    assert {"narrower cache", "slower tokens"} <= reasons
    assert "keys and values are stored narrower" in html and "键值位数更少" in html
    late = msgspec.structs.replace(
        seen, limits=Limits(per_token_s=0.5 * seen.best.per_token.p50, percent=50)
    )
    assert {late.loses(way).reason for way in seen.others[:3]} == {"tokens too slow"}
    assert "times the limit" in served.html(late)


def test_changes_that_will_not_do_are_marked(seen: Service) -> None:
    outcomes = {"full": "does not fit", "saturated": "too many come: 3.5 requests a second"}
    for outcome, said in outcomes.items():
        first, *rest = seen.changes
        broken = msgspec.structs.replace(first, outcome=outcome, way=None, most=3.5)
        html = served.html(msgspec.structs.replace(seen, changes=(broken, *rest)))
        assert said in html
    late = msgspec.structs.replace(seen.changes[0], outcome="late")
    assert "later than the limits" in served.html(msgspec.structs.replace(seen, changes=(late,)))


def test_what_was_asked_for_is_told() -> None:
    html = served.html(asked(
        requests=Requests(prompt=1024, answer=256, concurrency=1.0, shared=256, chunk=128),
        guesses=Guesses(accept=0.7, ahead=4, tokens=2.77, draft="small"),
    ))  # fmt: skip
    for part in ("1 request at a time", "the first 256 kept already", "chunks of 128",
                 "4 tokens guessed ahead (small)", "猜中 70"):  # fmt: skip
        assert part in html, part


def test_a_narrow_format_has_its_own_roof() -> None:
    narrow = served.html(asked(weight_bits=8.0))
    assert "fp8 733" in narrow and "8-bit weights" in narrow
    old = asked(fleet=fleet("4xv100-sxm2-32gb"), limits=Limits(), smaller=None, larger=())
    assert "fp16 125" in served.html(old)


def test_where_not_all_find_room_that_is_said(seen: Service) -> None:
    crowded = msgspec.structs.replace(
        seen, best=msgspec.structs.replace(seen.best, room=2.0, concurrency=9.0)
    )
    assert "fit at a time: the others wait" in served.html(crowded)


def test_without_power_and_price_dashes_stand(seen: Service) -> None:
    bare = msgspec.structs.replace(fleet("4xl40s"), power_full=None, price=None)
    found = asked(fleet=bare)
    html = served.html(found)
    assert "at rental prices" not in html and "energy of a token" not in html
    assert html.count(">–</td>") >= 2 * len(found.others)


def test_a_layout_is_told_in_both_languages() -> None:
    told = placement(msgspec.structs.replace(PLACED, groups=2, apart=1, weight_bits=4.5))
    assert told.en == (
        "4 replicas of 2, attention by request + 1 for prompts; 4-bit weights, 16-bit cache"
    )
    assert "4 个副本，每个 2 卡" in told.zh and "另有 1 组专算提示" in told.zh
