from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from narrows.hardware import child
from narrows.hardware.measurement import Measurement, Request, Spot
from narrows.spec.errors import BadInput, RunFailed


def _request(folder: Path, threads: int = 2) -> Request:
    return Request(folder=str(folder), seconds=1.0, threads=(threads,))


def test_a_product_is_timed_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = child.run("spot", _request(tmp_path), Spot, seconds=100)
    assert found.fp32 > 1e9 and found.bf16 > 1e8


def test_a_measurement_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(child.TooLong, match="spot"):
        child.run("spot", _request(tmp_path), Spot, seconds=0.3)


def test_one_that_goes_on_may_take_longer_in_all() -> None:
    script = "for part in 1 2 3; do echo measuring $part; sleep 0.8; done"
    told: list[str] = []
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        said, late = child._listen(process, 2.0, told.append)
    assert said == told == [f"measuring {part}" for part in (1, 2, 3)] and not late


def test_a_mistake_of_the_user_arrives_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []
    with pytest.raises(BadInput, match="cannot be used") as caught:
        child.run(
            "everything", _request(tmp_path / "file"), Measurement, seconds=100, talk=told.append
        )
    assert "NARROWS_HOME" in (caught.value.hint or "")
    assert "measuring the disk" in told


def test_a_failure_says_the_last_words(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="exit 1") as caught:
        child.run("nonsense", _request(tmp_path), Spot, seconds=100)  # type: ignore[arg-type]
    assert any("nonsense" in line for line in caught.value.causes)


def test_limits_on_threads_stay_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    environment = child._environment(tmp_path)
    assert "OMP_NUM_THREADS" not in environment
    assert environment["SOMETHING_ELSE"] == "kept"
    assert os.environ["OMP_NUM_THREADS"] == "1"
