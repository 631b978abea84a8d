"""A trained network as an ONNX file, through jax2onnx.

The network takes one image at a time: a routed stage is then a loop of at most one turn, in which the weights of the
image's unit are sliced. What jax2onnx makes of it is run with ONNX Runtime and compared with the network before it is
written.
"""

import json
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rmn_jax import routing
from rmn_jax.errors import UserError
from rmn_jax.files import write_bytes
from rmn_jax.inference.export import about
from rmn_jax.inference.trained import Trained
from rmn_jax.models import Outputs

_INSTALL = "pip install 'rmn-jax[onnx]', then pip install --no-deps jax2onnx (docs/export.md says why)"
_TOLERANCE = 1e-4  # of logits
_TRIED = 4  # random images in the comparison


def export_onnx(trained: Trained, out: str | pathlib.Path) -> int:
    """Writes a trained network as an ONNX file; returns the size in bytes.

    The input ``image`` is uint8 [1, H, W, 3] of ``trained.stored_shape``; normalisation is inside. The outputs are
    ``logits`` and ``probabilities``, [1, K] float32, and ``units``, [S, 1] int32: from 0, or -1 for a plain network.
    The metadata ``rmn_jax`` is a JSON text with class names and versions.

    Args:
      trained: the network of a run.
      out: the file.

    Raises:
      UserError: a network that draws random numbers; jax2onnx or ONNX Runtime is not installed, does not take the
        network, or changes what it computes; or the file cannot be written.
    """
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--format=onnx needs {error.name or error}: {_INSTALL}.") from None
    network = _network(trained)
    image = jax.ShapeDtypeStruct((1, *trained.stored_shape), jnp.uint8)
    names = ["logits", "probabilities", "units"]
    try:
        proto = jax2onnx.to_onnx(network, [image], model_name="rmn_jax", input_names=["image"], output_names=names)
        entry = proto.metadata_props.add()
        entry.key, entry.value = "rmn_jax", json.dumps(about(trained))
        content = proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; not each constant that its optimizer removes
        runtime = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).integers(0, 256, (_TRIED, *image.shape), dtype=np.uint8)
        found = [runtime.run(names, {"image": each}) for each in images]
    except Exception as error:  # a converter of many plug-ins, and a runtime without some operators
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"jax2onnx or ONNX Runtime does not take this network ({type(error).__name__}: {first})."
        ) from None
    _check_equal(jax.jit(network), images, found)
    write_bytes(pathlib.Path(out), content)
    return len(content)


def _network(trained: Trained):
    """The function of one image that is converted."""
    model = trained.model.clone(backend="scan", dtype=jnp.float32)
    if routing.ROUTERS[model.router].needs_keys if model.routed else model.attention == "conditional":
        raise UserError("--format=onnx cannot draw random numbers, as this network does; use --format=jax.")

    def network(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        outputs = cast(Outputs, model.apply(trained.variables, trained.preprocess.evaluate(image)))
        return outputs.logits, jax.nn.softmax(outputs.logits), outputs.assignment

    return network


def _check_equal(network, images: np.ndarray, found: list[Any]) -> None:
    """Raises UserError if the converted network computes something else on any of the images."""
    for image, (logits, _, units) in zip(images, found, strict=True):
        expected, _, assignment = jax.device_get(network(image))
        difference = float(np.abs(logits - expected).max())
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())) or (units != assignment).any():
            raise UserError(
                f"jax2onnx changes what this network computes (logits differ by {difference:.2g}); nothing was written."
            )
