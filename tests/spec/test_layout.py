from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from narrows.spec.errors import BadInput
from narrows.spec.fleet import Spread
from tests.layouts import layout_of

layout = partial(layout_of, accumulation=4, precision="bf16", loss_chunk=64)


@pytest.mark.parametrize("make", [layout, Spread])
@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"schedule": "zero_bubble"}, "a zero-bubble pipeline has 2 pieces a stage, not 1"),
        ({"schedule": "zero_bubble", "interleave": 3}, "a zero-bubble pipeline has 2 pieces"),
        ({"schedule": "gpipe", "interleave": 2}, "GPipe's stages are whole, not 2 pieces"),
        ({"pipeline": 0}, "layout.pipeline is 0"),
        ({"expert": -1}, "layout.expert is -1"),
        ({"micro_batch": 0}, "layout.micro_batch is 0"),
        ({"first_fewer": -1}, "layout.first_fewer is -1"),
    ],
)
def test_processes_and_fleets_refuse_the_same(make: Any, given: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput) as caught:
        make(**given)
    assert caught.value.what.startswith(what) and caught.value.hint


@pytest.mark.parametrize("make", [layout, Spread])
def test_what_a_schedule_runs_is_taken(make: Any) -> None:
    assert make(pipeline=4, schedule="zero_bubble", interleave=2).interleave == 2
    assert make(pipeline=4, schedule="gpipe").interleave == 1
    assert make(pipeline=4, interleave=3).interleave == 3
