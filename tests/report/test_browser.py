"""The page as a reader meets it: in a real browser, wide and narrow, light and dark.

As a script it photographs a run's page: python tests/report/test_browser.py RUN PICTURE.png
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from narrows.hardware.fleet import fleet, ladder
from narrows.model.presets import preset
from narrows.plan.fleet.forecast import forecast
from narrows.plan.fleet.question import Question
from narrows.plan.fleet.service import service
from narrows.plan.fleet.variants import Wanted
from narrows.plan.fleet.ways import Demand
from narrows.report import outlook, served
from narrows.report.page import write
from narrows.report.roofline import points
from narrows.report.run import read
from narrows.spec.job import budget
from narrows.spec.service import Limits, Requests

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE, DESK = 360, 1280

#: Visible text boxes of each drawing that is shown; turned text has no box of its own to compare.
TEXT_BOXES = """() => [...document.querySelectorAll('svg')].filter(each => each.clientWidth).map(
  each => [...each.querySelectorAll('text:not([transform])')].map(text => {
    const box = text.getBoundingClientRect();
    return [text.textContent, box.left, box.top, box.right, box.bottom];
  }))"""

#: What sticks out of the window, unless it lies in a box that scrolls by itself.
STICKING_OUT = """() => [...document.body.querySelectorAll('*')].filter(each => {
  const box = each.getBoundingClientRect();
  return box.width && !each.closest('.scroll') && !each.closest('#tip')
    && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(each => each.tagName + ' ' + each.textContent.slice(0, 40))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that says it was not found."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if chromium() is None:
        pytest.skip("no chromium was found: the page was not looked at in a browser")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield opened
        opened.close()


def chromium() -> str | None:
    """Where a browser is: NARROWS_CHROMIUM, else on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("NARROWS_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def photograph(run: Path, picture: Path) -> None:
    """The top of a run's page, as docs/report.png shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = opened.new_page(
            viewport={"width": DESK, "height": 1500}, color_scheme="light", locale="en-US"
        )
        page.goto(write(run).resolve().as_uri())
        page.screenshot(path=picture)
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """A function that opens a page file and hears its errors and requests."""
    contexts = []

    def open_page(
        file: Path, *, width: int = DESK, scheme: str = "light", language: str = "en-US"
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, locale=language,
            device_scale_factor=2 if width == PHONE else 1,
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.errors, page.requests = [], []
        page.on("console", lambda message: page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_fails_loads_or_sticks_out(run_folder, visit, width, scheme):
    file = write(run_folder)
    page = visit(file, width=width, scheme=scheme)
    assert page.errors == []
    assert page.requests == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{width}-{scheme}.png", full_page=True)
    page.click("#language")
    page.screenshot(path=SCREENSHOTS / f"report-{width}-{scheme}-zh.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
@pytest.mark.parametrize("width", [PHONE, 700, DESK])
def test_no_label_covers_another(run_folder, visit, width, language):
    page = visit(write(run_folder), width=width, language=language)
    drawings = page.evaluate(TEXT_BOXES)
    assert len(drawings) == 5
    for boxes in drawings:
        for place, (name, left, top, right, bottom) in enumerate(boxes):
            for other, left_2, top_2, right_2, bottom_2 in boxes[place + 1 :]:
                across = min(right, right_2) - max(left, left_2)
                down = min(bottom, bottom_2) - max(top, top_2)
                # A line box is taller than its letters, so boxes may touch a little.
                assert across <= 1 or down <= 6, f"{name} covers {other}"


def test_plots_show_every_point(run_folder, visit):
    run = read(run_folder)
    page = visit(write(run_folder))
    shown = "svg[data-plot={}] {}"
    assert len(page.query_selector_all(".plot.wide svg")) == 5
    counts = {
        ("roofline", "circle.measured"): len(points(run)),
        ("roofline", "circle.predicted"): len(points(run)),
        ("loss", "circle.validation"): len(run.evaluations),
        ("loss", "polygon.event"): 2,
        ("kinds", "rect.measured"): 7,
        ("memory", "rect.predicted"): 9,
    }
    for (plot, mark), count in counts.items():
        found = page.query_selector_all(".plot.wide " + shown.format(plot, mark))
        assert len([each for each in found if each.is_visible()]) == count, (plot, mark)
    length = page.evaluate(
        "document.querySelector('.plot.wide path.training:not(.raw)').getTotalLength()"
    )
    assert length > 500


def test_the_language_changes_by_the_button_and_starts_as_the_reader_reads(run_folder, visit):
    file = write(run_folder)
    page = visit(file)
    heading = page.locator("h2").first
    assert heading.inner_text() == "Loss"
    page.click("#language")
    assert heading.inner_text() == "损失"
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert page.locator("#language").inner_text() == "English"
    page.click("#language")
    assert heading.inner_text() == "Loss"
    assert visit(file, language="zh-CN").locator("h2").first.inner_text() == "损失"


def test_marks_tell_their_numbers_to_pointer_and_keyboard(run_folder, visit):
    page = visit(write(run_folder))
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator(".plot.wide rect.bar.measured").first.hover()
    assert tip.inner_text().replace("\u00a0", " ") == (
        "matrix products, measured: 766 ms (error −3.5 %)"
    )
    plot = page.locator(".plot.wide svg[data-plot=loss]")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    lines = tip.inner_text().splitlines()
    assert lines[0].startswith("step 1") and lines[1].startswith("training 4.")
    assert lines[2].startswith("validation 4.")
    page.locator(".plot.wide svg[data-plot=roofline] circle.measured").first.focus()
    assert tip.inner_text().startswith("up, backward:")
    page.mouse.move(2, 2)


def test_hostile_samples_do_not_run(make_run, visit, hostile):
    folder = make_run(steps=20)
    line = {"step": 20, "prompt": hostile, "text": hostile}
    (folder / "samples.jsonl").write_text(json.dumps(line))
    page = visit(write(folder))
    assert page.title() == "tempest · narrows"
    assert page.errors == [] and len(page.requests) == 1
    assert page.locator("img").count() == 0
    assert "<script>document.title='owned'</script>" in page.locator("pre").first.inner_text()


def test_an_injected_script_would_be_stopped_by_the_policy(run_folder, visit, tmp_path):
    html = write(run_folder).read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(html.replace("</main>", "<script>document.title='owned'</script></main>"))
    page = visit(broken)
    assert page.title() == "tempest · narrows"
    assert any("Content Security Policy" in error for error in page.errors)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_run_on_its_way_is_a_whole_page_too(make_run, visit, width):
    for steps in (0, 1, 37):
        folder = make_run(steps=steps, ledger=False, name=f"run-{steps}")
        page = visit(write(folder), width=width)
        assert page.errors == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(STICKING_OUT) == []


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_of_a_forecast_is_whole(visit, tmp_path, width, language):
    known = fleet("8xrtx-3090")
    outlook.write(
        forecast(Question(
            name="gpt2", model=preset("gpt2").spec, fleet=known, batch=64, wanted=Wanted(),
            budget=budget("3 days", "20B tokens"), against=(fleet("h100-sxm"),),
            ladder=ladder(known),
        )),
        tmp_path / "forecast.html",
    )  # fmt: skip
    file = tmp_path / "forecast.html"
    page = visit(file, width=width, language=language)
    assert page.errors == [] and page.requests == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    scaling = page.query_selector_all("svg[data-plot=scaling] path.validation")
    assert len([each for each in scaling if each.is_visible()]) == 1


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_of_a_served_model_is_whole(visit, tmp_path, width, language):
    file = tmp_path / "served.html"
    served.write(
        service(Demand(
            name="mixtral-8x7b", model=preset("mixtral-8x7b").spec, fleet=fleet("8xa100-80gb"),
            requests=Requests(prompt=1024, answer=256, rate=5.0),
            limits=Limits(first_token_s=2.0, per_token_s=0.05), smaller=fleet("4xa100-80gb"),
        )),
        file,
    )  # fmt: skip
    page = visit(file, width=width, language=language, scheme="dark")
    assert page.errors == [] and page.requests == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    for plot, often in (("sweep", 1), ("roofline", 2), ("bars", 5)):
        drawn = page.query_selector_all(f"svg[data-plot={plot}]")
        assert len([each for each in drawn if each.is_visible()]) == often, plot


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))
