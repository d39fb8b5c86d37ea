"""The receipt of a compressed model says what is true of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from narrows.adapt.method import AWQ, GPTQ, Round, Type
from narrows.cli.main import main
from narrows.evaluate.compression import Receipt, Wanted, shrink
from narrows.evaluate.divergence import by_torch, divergences
from narrows.infer.loading import load
from narrows.kernels.build import obstacle
from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.model import llama
from tests.infer.conftest import CONTEXT, TEXT, VOCABULARY, MakeRun, built, spec

SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)


@pytest.fixture
def text(tmp_path: Path) -> str:
    place = tmp_path / "texts" / "some.txt"
    place.parent.mkdir()
    place.write_text(TEXT * 40)
    return str(place)


def receipt(run: Path, type: Type, method: object, text: str, **more: object) -> Receipt:
    to = run.parent / f"{type}.gguf"
    return shrink(run, Wanted(to, type, method, calibrate=text, samples=8, held=4, **more),
                  talk=lambda line: None)  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("method", [Round(), GPTQ(), AWQ()], ids=["round", "gptq", "awq"])
def test_a_receipt_is_kept_beside_the_file(
    method: Round | GPTQ | AWQ, make_run: MakeRun, text: str, tmp_path: Path
) -> None:
    found = receipt(make_run(shape=SHAPE), "q4_0", method, text)
    assert record.load(Receipt, tmp_path / "q4_0.gguf.receipt.json") == found
    assert found.bytes == found.bytes_predicted < found.bytes_file
    assert found.bits_before == 32.0 and 4.5 < found.bits < 9.0
    assert found.rate.tokens_per_s > 0 and found.method == method
    assert found.quality is not None and 0 < found.quality.kl_mean < found.quality.kl_p99
    assert found.quality.perplexity != found.quality.perplexity_before
    assert "last 10%" in found.quality.text
    assert (found.calibration is None) == isinstance(method, Round)
    assert (found.quality_here is None) == (obstacle() is not None)
    if found.quality_here is not None:
        assert found.quality_here.kl_mean == pytest.approx(found.quality.kl_mean, rel=0.5)


def test_eight_bits_lose_less_than_four(make_run: MakeRun, text: str) -> None:
    run = make_run(shape=SHAPE)
    eight, four = (receipt(run, type, Round(), text).quality for type in ("q8_0", "q4_0"))
    assert eight is not None and four is not None
    assert 10 * eight.kl_mean < four.kl_mean and eight.same > four.same


def test_what_is_compared_is_what_is_said() -> None:
    one, other = built(spec(), seed=1, deviation=4.0), built(spec(), seed=2, deviation=4.0)
    rows_BT = np.random.default_rng(0).integers(0, VOCABULARY, (3, CONTEXT))
    found, alike = divergences(
        by_torch(one), [by_torch(other), by_torch(one)], rows_BT, "noise", lambda line: None
    )
    tokens_BT = torch.from_numpy(rows_BT)
    p_MV, q_MV = (each(tokens_BT)[:, :-1].flatten(0, 1).log_softmax(-1) for each in (one, other))
    targets_M = tokens_BT[:, 1:].flatten()
    kl_M = torch.nn.functional.kl_div(q_MV, p_MV, log_target=True, reduction="none").sum(-1)
    assert found.tokens == 3 * (CONTEXT - 1)
    assert found.kl_mean == pytest.approx(float(kl_M.mean()), rel=1e-4)
    assert found.kl_p99 == pytest.approx(float(kl_M.quantile(0.99)), rel=1e-4)
    loss = torch.nn.functional.nll_loss(q_MV, targets_M)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert found.same == float((p_MV.argmax(-1) == q_MV.argmax(-1)).double().mean())
    assert (alike.kl_mean, alike.same) == (0.0, 1.0)


def test_a_model_that_diverged_is_infinitely_perplexed() -> None:
    lost = by_torch(built(spec(), deviation=1e5))
    rows_BT = np.random.default_rng(0).integers(0, VOCABULARY, (1, CONTEXT))
    (found,) = divergences(lost, [lost], rows_BT, "noise", lambda line: None)
    assert (found.perplexity_before, found.perplexity) == (math.inf, math.inf)


def test_without_a_text_nothing_is_said_of_quality(make_run: MakeRun, tmp_path: Path) -> None:
    said: list[str] = []
    found = shrink(make_run(shape=SHAPE), Wanted(tmp_path / "a.gguf", "q8_0", Round()),
                   talk=said.append)  # fmt: skip
    assert found.quality is None and any("not measured" in line for line in said)


@pytest.mark.parametrize("method", [GPTQ(), AWQ()], ids=["gptq", "awq"])
def test_a_method_without_a_text_is_refused(
    method: GPTQ | AWQ, make_run: MakeRun, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="none is given") as caught:
        shrink(make_run(shape=SHAPE), Wanted(tmp_path / "a.gguf", "q8_0", method), talk=print)
    assert "--calibrate" in str(caught.value.hint)


def test_a_text_that_is_too_short_is_refused_before_anything_is_written(
    make_run: MakeRun, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("ROMEO")
    wanted = Wanted(tmp_path / "a.gguf", "q8_0", Round(), text=str(tmp_path / "short.txt"))
    with pytest.raises(BadInput, match="a row takes"):
        shrink(make_run(shape=SHAPE), wanted, talk=print)
    assert not list(tmp_path.glob("*.gguf*"))


def test_samples_longer_than_the_context_are_refused(
    make_run: MakeRun, text: str, tmp_path: Path
) -> None:
    wanted = Wanted(tmp_path / "a.gguf", "q8_0", Round(), text=text, positions=CONTEXT + 1)
    with pytest.raises(BadInput, match=f"reads {CONTEXT} positions, and {CONTEXT + 1}") as caught:
        shrink(make_run(shape=SHAPE), wanted, talk=print)
    assert caught.value.hint == f"--positions {CONTEXT}"


def test_the_verb_answers_and_refuses(
    make_run: MakeRun, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(make_run(shape=SHAPE)), str(tmp_path / "a.gguf")
    asked = ["compress", run, "--to", "q4_1", "--text", text, "--held", "2", "--out", out]
    assert main(asked) == 0
    shown = capsys.readouterr()
    assert "bits a weight" in shown.out and "same first" in shown.out
    assert "next: narrows generate" in shown.err
    again = [*asked[:-1], str(tmp_path / "b.gguf"), "--json"]
    assert main(again) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["type"] == "q4_1" and said["quality"]["tokens"] == 2 * (CONTEXT - 1)
    for wrong in (["--method", "gptq", "--damping", "2"], ["--damping", "0.1"], ["--held", "0"]):
        assert main([*asked[:-1], str(tmp_path / "c.gguf"), *wrong]) == 2
    assert main(asked) == 2
    assert "exists already" in capsys.readouterr().err
    assert load(tmp_path / "a.gguf", precision="fp32").spec == SHAPE
