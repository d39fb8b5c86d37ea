from __future__ import annotations

from pathlib import Path

import pytest

from narrows.cli.main import main
from narrows.infer.export import export
from narrows.infer.generate import ServingPrecision
from narrows.infer.packed_core import PackedCore
from narrows.infer.ready import Model
from narrows.infer.server.need import need, sizes
from narrows.infer.server.run import reserved
from narrows.infer.torch_core import TorchCore
from narrows.infer.writer import load_writer
from narrows.kernels.build import obstacle
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision
from narrows.spec.model import llama
from tests.infer.conftest import CONTEXT, VOCABULARY, MakeRun

SHAPE = llama(layers=2, width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY, context=CONTEXT)


@pytest.mark.parametrize("precision", [None, "int8", "bf16"])
@pytest.mark.parametrize("kept", [None, "bf16", "int8"])
@pytest.mark.skipif(obstacle() is not None, reason=f"no native kernels: {obstacle()}")
def test_a_file_in_groups_is_served_packed_and_takes_what_was_said(
    make_run: MakeRun, tmp_path: Path, kept: CachePrecision | None, precision: ServingPrecision
) -> None:
    path = tmp_path / "out.gguf"
    export(make_run(shape=SHAPE), path, type="q8_0", talk=print)
    core = load_writer(path, precision=precision, cache=kept).core(2, 33)
    assert isinstance(core, PackedCore) and (core.slots, core.context) == (2, 33)
    taken = need(sizes(Model(path, precision)), 2, 33, kept).slot
    assert [cache.nbytes for cache in core._caches] == [taken] * 2


def test_a_run_is_served_as_torch_has_it(make_run: MakeRun) -> None:
    core = load_writer(make_run()).core(2, 32)
    assert isinstance(core, TorchCore) and (core.slots, core.context) == (2, 32)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize("port", [99999, 65536, -1])
def test_a_port_that_is_none_is_refused(host: str, port: int) -> None:
    with pytest.raises(BadInput, match=f"{host}:{port} cannot be listened on") as refused:
        reserved(host, port)
    assert refused.value.hint and "--port 0" in refused.value.hint
    if host != "::1":
        with reserved(host, 0) as made:
            assert made.getsockname()[1] > 0


def test_a_port_is_taken_before_a_model_is_loaded(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with reserved("127.0.0.1", 0) as other:
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", str(make_run()), "--port", port]) == 2
    told = capsys.readouterr().err
    assert f"127.0.0.1:{port} cannot be listened on" in told and "takes" not in told
