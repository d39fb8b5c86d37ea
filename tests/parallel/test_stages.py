from __future__ import annotations

from typing import Any

import msgspec
import pytest

from narrows.parallel.parts import Part
from narrows.parallel.stages import cut, own_pieces
from narrows.spec.errors import BadInput

from .equality import DENSE, MODELS, layout_of


def test_one_stage_keeps_what_no_pipeline_knows() -> None:
    parts = {name: Part.whole((4, 4)) for name in ("pooler.weight", "relative.weight", "encoder.x")}
    every = dict(parts)
    assert cut(DENSE, parts, own_pieces(DENSE, layout_of(), 0)) == set()
    assert parts == every


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooler": True}, "knows no pooler"),
    ],
)
def test_models_that_no_pipeline_computes_are_refused(change: dict[str, Any], message: str) -> None:
    spec = msgspec.structs.replace(MODELS["gpt"], **change)
    with pytest.raises(BadInput, match=message) as caught:
        own_pieces(spec, layout_of(pipeline=2), 0)
    assert "layout.pipeline = 1" in str(caught.value.hint)
