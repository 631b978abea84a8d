"""A run that starts from pretrained weights instead of phase 1. Its first checkpoint holds the weights.

The practical way to an RMN on ImageNet: import published weights, then clone the procedures, initialise the memories
and train the routed network (phases 2-4).
"""

import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax.errors import UserError
from rmn_jax.files import write_file
from rmn_jax.interop.torch_weights import ImportReport, load_torch_weights
from rmn_jax.models import build_model
from rmn_jax.training.checkpoint import Checkpoints, Position
from rmn_jax.training.ema import start_ema
from rmn_jax.training.networks import make_state
from rmn_jax.training.optimizer import make_optimizer
from rmn_jax.training.run import CONFIG_FILE
from rmn_jax.training.state import Phase


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
    """Creates a run folder from a weights file.

    Args:
      backbone: "resnet18", "resnet50", "vgg16_bn" or "efficientnet_b0".
      weights: a safetensors file with the names of torchvision or timm.
      workdir: a folder without a run.
      num_units: N of an RMN, whose training continues with phase 2. None makes a plain run.
      num_classes: K of the network.
      fresh_head: initialise the classifier instead of loading it.
      config: for the training; None is ImageNet at 224 pixels. It is changed: ``stem_epochs`` to 0, and the backbone, N
        and the method to those of the arguments.

    Returns:
      What was loaded. Nothing is written if the file does not match the network.

    Raises:
      UserError: the file does not match, the folder holds a run already, or it cannot be written.
    """
    folder = pathlib.Path(workdir)
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} already holds a run; give another --workdir.")
    config = _matching_config(config, backbone, num_units)
    configuration.validate(config, device_count=1)
    image_size = config.data.image_size or 224
    model = build_model(config, num_classes, image_size, routed=False)
    optimizer = make_optimizer(config, steps_per_epoch=1)  # the state does not depend on the schedule
    state = make_state(config, model, optimizer, (image_size, image_size, 3), jax.random.key(config.seed))
    loaded, report = load_torch_weights(weights, backbone, state.variables, fresh_head=fresh_head)
    params = jax.tree.map(jnp.asarray, loaded["params"])
    state = state._replace(
        params=params,
        batch_stats=jax.tree.map(jnp.asarray, loaded["batch_stats"]),
        opt_state=optimizer.init(params),
        ema=start_ema(params, config.ema),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Checkpoints(folder, config.checkpoint.keep, print).save(state, Position(0, Phase.STEM))
        write_file(folder / CONFIG_FILE, configuration.to_json(config))
    except OSError as error:
        raise UserError(f"cannot write to --workdir {folder}: {error.strerror}; choose another folder.") from None
    return report


def _matching_config(config: ConfigDict | None, backbone: str, num_units: int | None) -> ConfigDict:
    if config is None:
        config = configuration.default_config()
        config.data.name, config.data.image_size, config.data.augment = "imagenet2012", 224, "resized_crop_flip"
    config.model.backbone = backbone
    config.stem_epochs = 0
    config.method = "plain" if num_units is None else "rmn"
    if num_units is not None:
        config.model.num_units = num_units
    return config
