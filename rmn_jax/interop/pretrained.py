"""A run that starts from pretrained weights instead of phase 1. Its first checkpoint holds the weights.

The practical way to an RMN on ImageNet: import published weights, then clone the procedures, initialise the memories
and train the routed network (phases 2-4).
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax.errors import UserError
from rmn_jax.interop.names import MEAN, STD, library_names
from rmn_jax.interop.start import begin_run, check_new, describe_data, set_normalisation
from rmn_jax.interop.torch_weights import ImportReport, classes_in_file, fits_in_shape, load_torch_weights
from rmn_jax.models import build_model
from rmn_jax.models.build import CONFIG_OPTIONS, backbone_options
from rmn_jax.training.state import Phase

_IMAGENET_CLASSES = tuple(f"class {label}" for label in range(1000))


def import_run(
    *,
    backbone: str,
    weights: str,
    workdir: str,
    num_units: int | None = None,
    num_classes: int | None = None,
    fresh_head: bool = False,
    config: ConfigDict | None = None,
) -> tuple[ImportReport, str]:
    """Creates a run folder from a weights file.

    Args:
      backbone: one of ``rmn_jax.interop.names.importable()``.
      weights: a safetensors file with the names of torchvision or timm.
      workdir: a folder without a run.
      num_units: N of an RMN, whose training continues with phase 2. None makes a plain run.
      num_classes: K of the network; None is that of the data set.
      fresh_head: initialise the classifier instead of loading it. Also done if the file has another
        number of classes than the data set.
      config: for the training; None is ImageNet at 224 pixels. It is changed: ``stem_epochs`` to 0, the backbone, N
        and the method to those of the arguments, and the normalisation, if it has none, to that of the weights.

    Returns:
      What was loaded, and what happened to the head as a sentence. Nothing is written if the file does not match.

    Raises:
      UserError: the file does not match, the folder holds a run already, or it cannot be written.
    """
    folder = check_new(workdir)
    library_names(backbone)
    fallback = _IMAGENET_CLASSES if config is None else None
    config = _matching_config(config, backbone, num_units)
    configuration.validate(config, device_count=1)
    info = describe_data(config, num_classes, fallback)
    found = classes_in_file(weights, backbone)
    head = f"the classifier was loaded: {info.num_classes} classes"
    if fresh_head:
        head = f"the classifier was not loaded (--fresh_head): {info.num_classes} classes from initial values"
    elif found is not None and found != info.num_classes:
        fresh_head = True
        head = (
            f"the classifier was not loaded: the file has {found} classes, {info.name} has {info.num_classes}; it "
            "starts from initial values"
        )
    reports: list[ImportReport] = []

    def fill(variables: dict[str, Any]) -> dict[str, Any]:
        try:
            loaded, report = load_torch_weights(weights, backbone, variables, fresh_head=fresh_head)
        except UserError as error:
            raise UserError(_option_at_fault(weights, backbone, config, info, fresh_head) or str(error)) from None
        reports.append(report)
        return loaded

    begin_run(folder, config, info, Phase.STEM, fill, {"weights": str(weights), "backbone": backbone, "head": head})
    return reports[0], head


def _matching_config(config: ConfigDict | None, backbone: str, num_units: int | None) -> ConfigDict:
    if config is None:
        config = configuration.default_config()
        config.data.name, config.data.image_size, config.data.augment = "imagenet2012", 224, "resized_crop_flip"
    config.model.backbone = backbone
    config.stem_epochs = 0
    config.method = "plain" if num_units is None else "rmn"
    if num_units is not None:
        config.model.num_units = num_units
    set_normalisation(config, MEAN, STD)
    return config


def _option_at_fault(weights: str | pathlib.Path, backbone: str, config: ConfigDict, info, fresh_head: bool) -> str:
    """Why a file does not fit, if it is because of the page's options of the backbone; else empty."""
    options = backbone_options(config)
    if not options:
        return ""
    published = config.copy_and_resolve_references()
    published.model.update(CONFIG_OPTIONS)
    model = build_model(published, info.num_classes, info.image_shape[0], routed=False)
    keys, images = jax.random.split(jax.random.key(0), 1), jnp.zeros((1, *info.image_shape))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, keys=keys))
    if not fits_in_shape(weights, backbone, shapes, fresh_head):
        return ""
    given = " and ".join(f"config.model.{option} is {value!r}" for option, value in options.items())
    remedy = " ".join(f"--config.model.{option}={CONFIG_OPTIONS[option]}" for option in options)
    return f"{weights} does not fit: {given}, but it holds the published {backbone}; set {remedy}."
