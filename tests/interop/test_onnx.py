"""ONNX: the message where the converter is not installed; where it is, the file computes what the network computes.

jax2onnx 0.17 asks for an older orbax-checkpoint than this package, so no environment of the package has it by itself.
CONTRIBUTING.md says how to run the comparison.
"""

import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from rmn_jax.cli.main import main
from rmn_jax.data import digits
from rmn_jax.inference.trained import load_trained

WEIGHTS = pathlib.Path(__file__).parent.parent.parent / "weights"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("onnx") / "run"
    assert main(["import", f"--from={WEIGHTS / 'digits_plain.safetensors'}", f"--workdir={workdir}"]) == 0
    return workdir


def test_without_the_converter_one_line_says_how_to_install_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert main(["export", f"--workdir={run}", f"--out={tmp_path / 'd.onnx'}", "--format=onnx"]) == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps jax2onnx" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


class Converter:
    """In place of jax2onnx: fails, or converts to a network that a stand-in of ONNX Runtime gives wrong logits for."""

    def __init__(self, fails):
        self.fails, self.metadata_props = fails, self

    def to_onnx(self, network, inputs, **names):
        if self.fails:
            raise NotImplementedError("no converter for\n while")
        self.network = jax.jit(network)
        return self

    def add(self):
        return self

    def SerializeToString(self):
        return b"file"

    def SessionOptions(self):
        return self

    def InferenceSession(self, content, options, providers):
        assert content == b"file" and options.log_severity_level == 3
        return self

    def run(self, names, inputs):
        logits, probabilities, units = self.network(inputs["image"])
        return [np.asarray(logits) + 0.01, probabilities, units]


@pytest.mark.parametrize(("fails", "message"), [(True, "no converter for while"), (False, "logits differ by 0.01")])
def test_a_network_that_is_not_taken_or_changed_is_not_written(fails, message, run, tmp_path, monkeypatch, capsys):
    stand_in = Converter(fails)
    monkeypatch.setitem(sys.modules, "jax2onnx", stand_in)
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    assert main(["export", f"--workdir={run}", f"--out={tmp_path / 'd.onnx'}", "--format=onnx"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="its pins conflict with this package's")
@pytest.mark.parametrize("name", ["digits_rmn", "digits_plain"])
def test_onnx_runtime_gives_the_logits_of_the_run(name, tmp_path, capsys):
    import onnxruntime

    out, run = tmp_path / "digits.onnx", tmp_path / "run"
    assert main(["import", f"--from={WEIGHTS / f'{name}.safetensors'}", f"--workdir={run}"]) == 0
    assert main(["export", f"--workdir={run}", f"--out={out}", "--format=onnx"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bytes"] == out.stat().st_size
    trained, images = load_trained(run), digits.load_arrays()["eval"][0][:40]
    outputs = jax.jit(trained.model.apply)(trained.variables, trained.preprocess.evaluate(images))
    runtime = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for at, image in enumerate(images):
        logits, probabilities, units = runtime.run(["logits", "probabilities", "units"], {"image": image[None]})
        np.testing.assert_allclose(logits[0], outputs.logits[at], atol=1e-4)
        np.testing.assert_allclose(probabilities[0], jax.nn.softmax(outputs.logits[at]), atol=1e-4)
        np.testing.assert_array_equal(units[:, 0], outputs.assignment[:, at])
    about = json.loads(runtime.get_modelmeta().custom_metadata_map["rmn_jax"])
    assert about["class_names"] == [str(digit) for digit in range(10)]
