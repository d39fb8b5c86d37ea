"""Every published model is built at its full size on the meta device, which holds no numbers."""

from __future__ import annotations

import pytest
import torch

from narrows.kernels.load import load
from narrows.model.presets import presets
from narrows.model.transformer import Transformer


@pytest.mark.parametrize("name", presets())
def test_a_preset_has_the_parameters_that_its_spec_counts(name: str) -> None:
    spec = presets()[name].spec
    with torch.device("meta"):
        model = Transformer(spec, load("torch"))
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
