from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from narrows.plan.launch.work import Work, placed
from narrows.spec.errors import BadInput
from narrows.spec.layout import Layout

MakeWork = Callable[..., Work]


@pytest.mark.parametrize(
    ("nodes", "per_node", "found"),
    [(None, None, (1, 8)), (2, None, (2, 4)), (None, 2, (4, 2)), (8, 1, (8, 1))],
)
def test_nodes_and_processes_follow_from_each_other(
    nodes: int | None, per_node: int | None, found: tuple[int, int], make_work: MakeWork
) -> None:
    assert placed(make_work().plan.layout, nodes, per_node) == found


@pytest.mark.parametrize(
    ("nodes", "per_node", "what", "hint"),
    [
        (3, None, "--nodes 3 does not divide the plan's 8 processes", "use one of: 1, 2, 4, 8"),
        (None, 0, "--per-node 0 does not divide", "use one of: 1, 2, 4, 8"),
        (2, 2, "2 nodes of 2 processes are not the plan's 8", "--nodes 2 --per-node 4"),
    ],
)
def test_places_that_are_not_the_layouts_are_refused(
    nodes: int | None, per_node: int | None, what: str, hint: str, make_work: MakeWork
) -> None:
    with pytest.raises(BadInput) as caught:
        placed(make_work().plan.layout, nodes, per_node)
    assert what in caught.value.what and caught.value.hint == hint


def test_every_axis_of_a_layout_is_told(make_work: MakeWork) -> None:
    axes = {"replicas": 2, "data": 3, "tensor": 2, "pipeline": 5, "context": 7, "expert": 2}
    assert set(axes) <= set(Layout.__struct_fields__)
    title = make_work(layout=axes, nodes=1).title
    assert all(f"{axis} {size}" in title for axis, size in axes.items())
    assert "one process, as 1 x 1" in make_work(layout=dict.fromkeys(axes, 1), nodes=1).title


def test_a_label_is_a_name_that_clusters_accept(make_work: MakeWork) -> None:
    work = make_work()
    renamed = msgspec.structs.replace(work.plan, name="9_A..b" + "x" * 60 + "-")
    label = msgspec.structs.replace(work, plan=renamed).label
    assert label.startswith("narrows-9-a-bxx") and len(label) <= 40


def test_a_plan_without_text_is_refused(make_work: MakeWork) -> None:
    work = make_work()
    bare = msgspec.structs.replace(work, plan=msgspec.structs.replace(work.plan, data=None))
    with pytest.raises(BadInput, match="no data to train on"):
        _ = bare.needs
