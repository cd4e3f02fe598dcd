"""A saved network as a file of ONNX: what onnxruntime returns, or what is missing."""

import sys

import numpy as np
import pytest

import jasgnas
from jasgnas.cli import main
from tests.saved.flavours import MAKE


@pytest.fixture
def folder(tmp_path):
    return jasgnas.save(tmp_path / "network", *MAKE["nnx"]().subnet)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what jax2onnx calls
def test_a_network_is_converted_for_any_batch_size(folder, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs jasgnas[onnx], in an environment of its own")
    pytest.importorskip("jax2onnx")
    assert main(["onnx", str(folder)]) == 0
    output = folder.with_suffix(".onnx")
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape == ["batch", 4] and str(output) in capsys.readouterr().out
    x = np.cos(np.arange(36, dtype=np.float32).reshape(9, 4))
    np.testing.assert_allclose(session.run(None, {given.name: x})[0], jasgnas.load(folder)(x), rtol=1e-5, atol=1e-6)
    assert main(["onnx", str(folder)]) == 1 and "already" in capsys.readouterr().err


def test_without_the_packages_it_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["onnx", str(folder)]) == 1
    assert "jasgnas[onnx]" in capsys.readouterr().err and not folder.with_suffix(".onnx").exists()
