import msgspec
import pytest

from narrows.report.roofline import points, roofline, traffic
from narrows.report.roofs import roofs_of
from narrows.report.run import read


def test_points_are_the_operations_with_arithmetic_and_traffic(run_folder):
    found = points(read(run_folder))
    assert len(found) == 23
    longest = found[0]
    assert (longest.name.en, longest.phase) == ("up", "backward")
    assert longest.intensity == pytest.approx(1.45e11 / 1.5e9)
    assert longest.predicted == pytest.approx(1.45e11 / 0.191)
    assert longest.measured == pytest.approx(1.45e11 / (0.191 * 1.07))
    assert sum(point.share for point in found) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("width", [328.0, 656.0])
def test_each_point_is_a_disc_and_a_ring_joined_by_a_thread(run_folder, width):
    run = read(run_folder)
    svg = roofline(points(run), roofs_of(run.machine), run.plan.layout.precision, width)
    assert svg.count('class="measured"') == 23
    assert svg.count('class="predicted"') == 23
    assert svg.count('class="thread"') == 23
    assert svg.count('class="roof own"') == 1 and svg.count('class="roof"') == 2
    assert "bf16 950\u00a0GFLOP/s" in svg


def test_without_a_ledger_there_are_rings_alone(make_run):
    run = read(make_run(steps=5, ledger=False))
    svg = roofline(points(run), roofs_of(run.machine), "bf16", 656.0)
    assert svg.count('class="predicted"') == 23
    assert 'class="measured"' not in svg


def test_measured_rows_of_other_names_are_set_against_the_plan_by_kind_and_phase(make_run):
    run = read(make_run())
    renamed = tuple(
        msgspec.structs.replace(row, operation=f"aten::{row.kind}", flop=0.0)
        for row in run.measured.rows
    )
    ledger = msgspec.structs.replace(run.measured, rows=renamed)
    found = points(msgspec.structs.replace(run, measured=ledger))
    assert not any(point.predicted and point.measured for point in found)
    by_kind = {(point.name.en, point.phase): point for point in found if point.measured}
    backward = by_kind["matrix products", "backward"]
    plan = [row for row in run.plan.predicted.rows if (row.kind, row.phase) == ("gemm", "backward")]
    seconds = sum(row.seconds for row in renamed if (row.kind, row.phase) == ("gemm", "backward"))
    assert backward.measured == pytest.approx(sum(row.flop for row in plan) / seconds)
    assert sum(point.predicted is not None for point in found) == 23


def test_traffic_is_what_operations_without_arithmetic_move(run_folder):
    rows = read(run_folder).plan.predicted.rows
    assert traffic(rows) is None
    idle = {"norm", "add"}
    rows = tuple(
        msgspec.structs.replace(row, flop=0.0) if row.operation in idle else row for row in rows
    )
    count, rate = traffic(rows)
    assert (count, rate) == (3, pytest.approx((3.6e8 + 7.1e8 + 5.0e8) / (0.018 + 0.035 + 0.022)))


def test_roofs_are_what_the_machine_was_measured_to_do(run_folder):
    roofs = roofs_of(read(run_folder).machine)
    assert roofs.peaks == {"fp32": 0.23e12, "bf16": 0.95e12, "int8": 1.81e12}
    assert roofs.copy == 31.4e9
