import json
import re
from html.parser import HTMLParser

import pytest

from narrows.report.page import write
from narrows.spec.errors import BadInput


class Outline(HTMLParser):
    """Tags left open, headings, and whatever could reach outside the file."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.scripts = 0
        self.reaching: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "line", "rect", "circle", "path", "polygon"):
            self.open.append(tag)
        self.scripts += tag == "script"
        self.reaching += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]
        self.reaching += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        if tag not in ("line", "rect", "circle", "path", "polygon"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] in (["h2", "span"], ["section", "h2"]):
            self.headings.append(data)


def outline(folder) -> tuple[str, Outline]:
    page = write(folder)
    assert page == folder / "report.html"
    html = page.read_text(encoding="utf-8")
    parsed = Outline()
    parsed.feed(html)
    assert parsed.open == []
    return html, parsed


def test_the_page_has_its_sections_in_both_languages(run_folder):
    html, parsed = outline(run_folder)
    assert parsed.headings == [
        "Loss", "损失", "Learning rate", "学习率", "What it writes", "模型写出的文字",
        "Where the time goes", "时间去向", "Where the memory goes", "内存去向",
        "Roofline", "屋顶线", "If one had twice as much", "若资源加倍",
        "What the plan chose, and why", "计划的选择与理由", "Layouts considered", "考虑过的布局",
        "Energy, money, carbon", "能量、费用与碳排放", "Events", "事件", "The machine", "机器",
        "Made from", "来源",
    ]  # fmt: skip
    plain = html.replace("\u00a0", " ")
    for told in (
        "was trained on 2.46M tokens of shakespeare in 5 min 45 s", "3.5 % too low",
        "saves 9 s of 5 min and costs 41 s of compiling", "a third more arithmetic, 230 MB less",
        "Energy is estimated", "31 % slower than predicted", "1c0ffee5a11ad0e5", "g++ 12.2 found",
    ):  # fmt: skip
        assert told in plain


def test_the_page_needs_nothing_but_itself(run_folder):
    html, parsed = outline(run_folder)
    assert parsed.reaching == [] and parsed.scripts == 1
    assert "default-src &#x27;none&#x27;;" in html
    assert not re.search(r"https?://(?!www\.w3\.org)", html)
    assert len(html) < 400_000


def test_hostile_text_stays_text_wherever_it_comes_from(make_run, hostile):
    folder = make_run(steps=20)
    (folder / "samples.jsonl").write_text(
        json.dumps({"step": 20, "prompt": hostile, "text": hostile + "more"})
    )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "event": hostile, "message": hostile}) + "\n")
    plan = (folder / "plan.toml").read_text()
    attack = json.dumps("'\"><script>document.title=1</script>")
    (folder / "plan.toml").write_text(plan.replace('name = "tempest"', f"name = {attack}", 1))
    html, parsed = outline(folder)
    assert parsed.scripts == 1 and parsed.reaching == []
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in html
    assert "\u202e" not in html and "\x1b" not in html


@pytest.mark.parametrize("steps", [0, 1, 2, 40])
def test_a_run_on_its_way_has_a_page_that_says_what_is_missing(make_run, steps):
    folder = make_run(steps=steps, ledger=False)
    (folder / "machine.toml").unlink()
    (folder / "dataset.json").unlink()
    (folder / "samples.jsonl").write_text("")
    html, _ = outline(folder)
    for told in ("ledger.json is not there", "machine.toml is not in", "No sample was written yet"):
        assert told in html
    said = "planned: 300 steps" if steps == 0 else f"unfinished: {steps} of 300 steps"
    assert said in html


def test_what_happened_is_told_in_both_languages(make_run):
    folder = make_run(steps=20)
    slow = {"step": 9, "event": "slow", "message": "a step takes 2 s, 1 s were predicted"}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(slow) + "\n")
    html, _ = outline(folder)
    assert "a step takes 2 s, 1 s were predicted" in html
    assert html.count("每步 2 秒，预测为 1 秒") == 3


def test_a_finished_run_without_metrics_does_not_say_that_it_took_no_step(run_folder):
    (run_folder / "metrics.jsonl").unlink()
    html, _ = outline(run_folder)
    assert html.count("300 steps were taken, and metrics.jsonl no longer tells of them.") == 3
    assert "finished: 300 steps" in html and "No step has been logged" not in html
    assert "metrics.jsonl is not there." in html and "Some of the run folder is missing." in html


def test_a_loss_that_was_not_finite_is_told_at_the_top(make_run):
    folder = make_run(steps=90, ledger=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 91, "loss": NaN}\n{"step": 92, "loss": Infinity}\n')
    html, _ = outline(folder)
    assert "the loss was not finite at step 91" in html
    assert not re.search(r"[^a-zA-Z](nan|NaN|inf|Infinity)[^a-zA-Z]", html.split("<script>")[0])


def test_a_long_run_keeps_its_page_small(make_run):
    folder = make_run(steps=3)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 50_001):
            file.write(
                json.dumps({"step": step, "loss": 4 + 1 / step, "learning_rate": 1e-3}) + "\n"
            )
    html, _ = outline(folder)
    assert len(html) < 400_000


def test_writing_again_gives_the_same_page(run_folder):
    assert write(run_folder).read_bytes() == write(run_folder).read_bytes()


def test_what_is_not_a_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(BadInput):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_told_without_a_traceback(run_folder):
    (run_folder / "report.html").mkdir()
    with pytest.raises(BadInput, match=r"report\.html is not a file"):
        write(run_folder)
