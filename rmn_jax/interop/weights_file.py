"""Trained weights as safetensors files, under the names of this package or of torchvision.

A file under the names of this package is enough to begin a run. It holds the variables by path, such as
``params/stage1/block1/conv1/kernel``. Its header has one JSON text, ``rmn_jax``: format version, configuration and
description of the data set. Nothing is unpickled.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.errors import UserError
from rmn_jax.files import write_bytes
from rmn_jax.inference.export import flatten
from rmn_jax.inference.trained import Trained, load_trained
from rmn_jax.interop.tensor_file import open_tensors
from rmn_jax.interop.torch_weights import to_torchvision
from rmn_jax.training.run_folder import info_from_dict

VERSION = 1
_HEADER = "rmn_jax"


class Weights(NamedTuple):
    """Weights of a run, read from its folder or from a file.

    Attributes:
      arrays: the variables by path.
      config: of the run.
      info: of its data set.
      routed: whether they are those of the routed network.
      source: the folder or file, for messages.
    """

    arrays: dict[str, np.ndarray]
    config: ConfigDict
    info: data.DatasetInfo
    routed: bool
    source: str


def save_weights(trained: Trained, out: str | pathlib.Path) -> int:
    """Writes the variables of a run under our names; returns the size in bytes.

    Raises:
      UserError: the file cannot be written.
    """
    about = {
        "version": VERSION,
        "routed": trained.model.routed,
        "config": trained.config.to_dict(),
        "dataset": trained.info._asdict(),
    }
    content = save(flatten(trained.variables), metadata={_HEADER: json.dumps(about)})
    write_bytes(pathlib.Path(out), content)
    return len(content)


def save_torchvision(trained: Trained, out: str | pathlib.Path) -> int:
    """Writes the weights of a plain run under torchvision's names; returns the size in bytes.

    Raises:
      UserError: a routed run, a backbone that torchvision does not have, or the file cannot be written.
    """
    if trained.model.routed:
        raise UserError("torchvision has no routed networks; export this run with --format=safetensors.")
    if trained.model.attention != "none":
        raise UserError("torchvision has no attention between stages; export this run with --format=safetensors.")
    content = save(to_torchvision(trained.variables, trained.config.model.backbone), metadata={"format": "pt"})
    write_bytes(pathlib.Path(out), content)
    return len(content)


def load_weights(source: str | pathlib.Path, warn=print) -> Weights:
    """The weights of a run folder, or of a file that ``save_weights`` wrote.

    Raises:
      UserError: no run, not such a file, one of a newer release, or values that are not finite.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        trained = load_trained(path, warn)
        return Weights(flatten(trained.variables), trained.config, trained.info, trained.model.routed, str(source))
    if not path.exists():
        raise UserError(f"no such run or file: {source}")
    with open_tensors(source, " It is no run folder either.") as file:
        try:
            about = json.loads(file.metadata.get(_HEADER, "{}"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"the header of {source} is damaged ({error}); export it again.") from None
        arrays = {name: file.read(name) for name in file.shapes} if about else {}
    if not about:
        raise UserError(
            f"{source} has no header of this package; weights of torchvision or timm are read with --weights."
        )
    if not isinstance(about, dict) or about.get("version") != VERSION:
        version = about.get("version") if isinstance(about, dict) else None
        raise UserError(f"{source} is of format {version}, this one reads {VERSION}; use the release that wrote it.")
    if not (isinstance(about.get("config"), dict) and isinstance(about.get("dataset"), dict)):
        raise UserError(f"{source} has no configuration or no data set in its header; export it again.")
    config, info = configuration.from_dict(about["config"], str(source)), info_from_dict(about["dataset"], str(source))
    routed = any(name.startswith("memory/") for name in arrays)
    if about.get("routed") is not routed:
        what = "memories, but its header is of a plain network" if routed else "no memories for its routed network"
        raise UserError(f"{source} has {what}; export it again.")
    return Weights(arrays, config, info, routed, str(source))
