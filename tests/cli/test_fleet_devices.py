"""What devices of the catalogue compute in, asked for by name."""

from __future__ import annotations

import pytest

from tests.cli.test_fleet import Said, answered, refused


def test_llama_405b_is_planned_for_16384_devices(capsys: Said) -> None:
    """Published: 41 % of the peak (arXiv:2407.21783)."""
    found = answered(capsys, "plan", "llama-3.1-405b", "--machine", "2048x8xh100-sxm")
    assert 0.33 < found.predicted.mfu < 0.5


@pytest.mark.parametrize(
    ("machine", "precision"),
    [("cpu-avx2-8c", "fp32"), ("cpu-avx512-32c", "fp32"), ("t4", "fp16"), ("v100-sxm-32gb", "fp16"),
     ("cpu-amx-56c", "bf16"), ("h100-sxm", "bf16")],
)  # fmt: skip
def test_each_device_trains_in_what_it_computes(capsys: Said, machine: str, precision: str) -> None:
    found = answered(capsys, "plan", "gpt2", "--machine", machine)
    assert found.spread.precision == precision and 0.1 < found.predicted.mfu < 0.75


def test_what_a_device_does_not_compute_in_is_refused(capsys: Said) -> None:
    words = ["plan", "gpt2", "--machine"]
    message, hint = refused(capsys, *words, "t4", "--set", "layout.precision=bf16")
    assert "NVIDIA T4 16 GB has no bf16 figures" in message and hint.endswith("=fp16")
    for more in (["alveo-u280"], ["alveo-u280", "--set", "layout.precision=fp32"]):
        message, hint = refused(capsys, *words, *more)
        assert "computes integers alone" in message and "--serve 1" in hint
    slow = answered(capsys, *words, "cpu-amx-56c", "--set", "layout.precision=fp16")
    assert 0.1 < slow.predicted.mfu < 0.75
