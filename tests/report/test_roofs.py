from itertools import combinations

from narrows.hardware.fleet import fleet
from narrows.report.plot import Frame, Logarithmic
from narrows.report.roofs import Roofs, draw, roofs_of_device

FRAME = Frame(width=656.0, height=430.0, left=44.0, right=14.0, top=34.0, bottom=46.0)
ACROSS = Logarithmic(low=0.05, high=300.0, start=FRAME.left, end=FRAME.x_end)
UP = Logarithmic(low=1e9, high=4e12, start=FRAME.y_end, end=FRAME.top)


def test_own_roof_is_drawn_last_and_closes_the_space_above_it():
    roofs = Roofs(peaks={"fp32": 0.2e12, "bf16": 1e12}, copy=20e9)
    drawn, taken = draw(roofs, "bf16", FRAME, (ACROSS, UP))
    assert 'class="roof"' in drawn[0] and 'class="roof own"' in drawn[1]
    x, y = ACROSS.at(200.0), UP.at(1.1e12)
    assert any(
        box.x <= x <= box.x + box.width and box.y <= y <= box.y + box.height for box in taken
    )


def test_names_of_close_roofs_do_not_overlap():
    roofs = Roofs(peaks={"fp32": 1e12, "bf16": 1.02e12, "int8": 1.05e12}, copy=20e9)
    drawn, taken = draw(roofs, "bf16", FRAME, (ACROSS, UP))
    names = [box for box in taken if box.y > 0 and box.width > 12]
    assert len(names) == 2
    assert not any(first.overlaps(second) for first, second in combinations(names, 2))
    assert any("bf16" in mark for mark in drawn)


def test_a_run_in_a_precision_that_was_not_measured_still_has_roofs():
    drawn, taken = draw(Roofs(peaks={"fp32": 1e12}, copy=20e9), "bf16", FRAME, (ACROSS, UP))
    assert len(drawn) == 3 and all(box.y > 0 for box in taken)


def test_a_name_keeps_clear_of_marks():
    roofs = Roofs(peaks={"fp32": 2e9, "bf16": 1e12}, copy=20e9)
    _, taken = draw(roofs, "bf16", FRAME, (ACROSS, UP))
    name = next(box for box in taken if box.y > UP.at(4e9) and box.width > 12)
    _, taken = draw(roofs, "bf16", FRAME, (ACROSS, UP), marks=[name])
    assert name not in taken
    assert any(box.y > UP.at(4e9) and box.width > 12 for box in taken)


def test_a_device_has_its_own_roof_and_those_of_narrower_formats():
    h100, v100 = fleet("h100-sxm"), fleet("v100-sxm2-32gb")
    assert roofs_of_device(h100, "bf16").peaks == {"bf16": 989.4e12, "fp8": 1978.9e12}
    assert set(roofs_of_device(h100, "fp8").peaks) == {"fp8"}
    assert set(roofs_of_device(v100, "fp16").peaks) == {"fp16"}
    assert roofs_of_device(h100, "bf16").copy == 3.35e12
