from __future__ import annotations

from typing import Any

import pytest

from .equality import MODELS, assert_equal, layout_of

pytestmark = pytest.mark.dist
SCHEDULES: dict[str, dict[str, Any]] = {
    "gpipe": {"schedule": "gpipe"},
    "1f1b": {},
    "interleaved": {"interleave": 2},
    "zero_bubble": {"schedule": "zero_bubble", "interleave": 2},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_stages_find_the_gradients_of_one(name: str, schedule: str) -> None:
    assert_equal(MODELS[name], layout_of(pipeline=2, **SCHEDULES[schedule]))
