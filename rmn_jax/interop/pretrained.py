"""Pretrained weights in place of step 1: a run's folder whose first checkpoint holds them.

The practical way to an RMN on ImageNet: import the weights people have, then clone, initialise the memories and
train routed (steps 2-4).
"""

import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax.errors import UserError
from rmn_jax.interop.torch_weights import ImportReport, load_torch_weights
from rmn_jax.train.average import start_average
from rmn_jax.train.checkpoint import Checkpoints, Position
from rmn_jax.train.optimizer import make_optimizer
from rmn_jax.train.run import CONFIG_FILE, build_model, make_state, write_file


def import_run(
    *,
    backbone: str,
    weights: str,
    workdir: str,
    num_units: int | None = None,
    num_classes: int = 1000,
    fresh_head: bool = False,
    config: ConfigDict | None = None,
) -> ImportReport:
    """Makes a run of a weights file.

    Args:
      backbone: "resnet18", "resnet50", "vgg16_bn" or "efficientnet_b0".
      weights: a safetensors file under torchvision's or timm's names.
      workdir: a folder without a run.
      num_units: N of an RMN whose training goes on with step 2; None makes a plain run.
      num_classes: K of the network.
      fresh_head: start the classifier anew.
      config: of the training to come; None is ImageNet at 224 pixels. Its backbone, N and method are set to match,
        and ``stem_epochs`` to 0.

    Returns:
      What was loaded. Nothing is written unless the file fits.

    Raises:
      UserError: a file that does not fit, or a folder that holds a run or cannot be written.
    """
    folder = pathlib.Path(workdir)
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} already holds a run; give another --workdir.")
    config = _matching_config(config, backbone, num_units)
    configuration.validate(config, device_count=1)
    image_size = config.data.image_size or 224
    model = build_model(config, num_classes, image_size, routed=False)
    optimizer = make_optimizer(config, updates_per_epoch=1)  # the state's form does not depend on the schedule
    state = make_state(config, model, optimizer, (image_size, image_size, 3), jax.random.key(config.seed))
    loaded, report = load_torch_weights(weights, backbone, state.variables, fresh_head=fresh_head)
    params = jax.tree.map(jnp.asarray, loaded["params"])
    state = state._replace(
        params=params,
        batch_stats=jax.tree.map(jnp.asarray, loaded["batch_stats"]),
        opt_state=optimizer.init(params),
        average=start_average(params, config.ema),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Checkpoints(folder, config.checkpoint.keep, print).save(state, Position(0, 1))
        write_file(folder / CONFIG_FILE, configuration.to_json(config))
    except OSError as error:
        raise UserError(f"cannot write to --workdir {folder}: {error.strerror}; choose another folder.") from None
    return report


def _matching_config(config: ConfigDict | None, backbone: str, num_units: int | None) -> ConfigDict:
    if config is None:
        config = configuration.default_config()
        config.data.name, config.data.image_size, config.data.augment = (
            "imagenet2012",
            224,
            "resized_crop_flip",
        )
    config.model.backbone = backbone
    config.stem_epochs = 0
    config.method = "plain" if num_units is None else "rmn"
    if num_units is not None:
        config.model.num_units = num_units
    return config
