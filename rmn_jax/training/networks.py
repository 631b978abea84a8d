"""The plain and the routed network of a run, their states, and their compiled steps."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from rmn_jax import data
from rmn_jax.models import RMN, build_model, initialise
from rmn_jax.training import step as steps
from rmn_jax.training.ema import start_ema
from rmn_jax.training.optimizer import make_optimizer
from rmn_jax.training.sharding import describe_split, unit_specs
from rmn_jax.training.state import Metrics, TrainState


class Networks:
    """Both networks of a configuration and what is compiled for them. Each step is compiled once.

    Args:
      config: complete, see ``rmn_jax.config``.
      info: of the data set.
      preprocess: of the data set's images.
      mesh: the devices.
      steps_per_epoch: for the learning-rate schedule.

    Raises:
      UserError: a pattern of ``config.optimizer.freeze`` matches no parameter.
    """

    def __init__(
        self,
        config: ConfigDict,
        info: data.DatasetInfo,
        preprocess: data.Preprocess,
        mesh: Mesh,
        steps_per_epoch: int,
    ):
        self._config, self._info, self._preprocess, self._mesh = config, info, preprocess, mesh
        self._steps_per_epoch = steps_per_epoch
        self._optimizer = make_optimizer(config, steps_per_epoch)
        routed_from = config.stem_epochs * steps_per_epoch
        self._mixing = (routed_from, max(1, (config.epochs * steps_per_epoch - routed_from) // 2))
        self._train_steps: dict[bool, Any] = {}
        self._eval_steps: dict[tuple[bool, bool], Any] = {}
        self._extract_steps: dict[tuple[bool, bool], Any] = {}
        if config.optimizer.freeze:
            self.state_shapes(routed=False)  # raises here, before the run folder is written

    def model(self, routed: bool) -> RMN:
        """The routed network, or the plain one ("Original", and phase 1) over the same backbone."""
        return build_model(self._config, self._info.num_classes, self._info.image_shape[0], routed, steps.AXIS)

    @property
    def routed_stages(self) -> tuple[int, ...]:
        """The numbers, from 1, of the stages that the routed network routes."""
        return self.model(routed=True).stages_with_memories

    def train_step(self, routed: bool):
        """The jitted optimizer step, see ``rmn_jax.training.step.make_train_step``."""
        config = self._config
        if routed not in self._train_steps:
            model = self.model(routed)
            self._train_steps[routed] = steps.make_train_step(
                model,
                make_optimizer(config, self._steps_per_epoch, model.stages_with_memories),
                self._preprocess.train,
                self._mesh,
                alpha=config.model.memory_momentum,
                label_smoothing=config.label_smoothing,
                mixup=config.mixup,
                accumulation=config.accumulation,
                ema=config.ema,
                unit_gradient=config.unit_gradient,
                balance_loss=config.balance_loss,
                mixing=self._mixing,
                cutmix=config.cutmix,
                repeats=config.data.repeats,
                specs=self.specs(routed),
            )
        return self._train_steps[routed]

    def eval_step(self, routed: bool, confusion: bool = False):
        """The jitted evaluation of one batch, see ``rmn_jax.training.step.make_eval_step``."""
        if (routed, confusion) not in self._eval_steps:
            self._eval_steps[routed, confusion] = steps.make_eval_step(
                self.model(routed), self._preprocess.evaluate, self._mesh, confusion, self.specs(routed)
            )
        return self._eval_steps[routed, confusion]

    def extract_step(self, routed: bool, augmented: bool = False):
        """The jitted extraction of features, see ``rmn_jax.training.step.make_extract_step``."""
        key = routed, augmented
        if key not in self._extract_steps:
            augment = self._preprocess.train if augmented else None
            model, evaluate = self.model(routed), self._preprocess.evaluate
            self._extract_steps[key] = steps.make_extract_step(model, evaluate, self._mesh, augment, self.specs(routed))
        return self._extract_steps[key]

    def specs(self, routed: bool) -> TrainState | None:
        """How the state is split over the devices (``config.shard_units``); None is a copy on every device."""
        if not (self._config.shard_units and routed and self._mesh.size > 1):
            return None
        return unit_specs(self.state_shapes(routed), self.routed_stages, self._mesh.size)

    def shardings(self, routed: bool) -> Any:
        """Where a state is on the devices: a tree of ``NamedSharding``, or one of them for all leaves."""
        return jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), self.specs(routed) or P())

    def split_note(self) -> str:
        """What ``config.shard_units`` does in this run, as a line; empty if it is off."""
        if not self._config.shard_units:
            return ""
        if self._config.method == "plain":
            return "config.shard_units: the plain network has no units, so nothing is split"
        return describe_split(self.state_shapes(routed=True), self.routed_stages, self._mesh.size)

    def initial_state(self, key: jax.Array, routed: bool = False) -> TrainState:
        """The state before the first step."""
        return make_state(self._config, self.model(routed), self._optimizer, self._info.image_shape, key)

    def state_shapes(self, routed: bool) -> TrainState:
        """Shapes and dtypes of a state: what a checkpoint is restored to."""
        return state_shapes(self._config, self.model(routed), self._optimizer, self._info.image_shape)


def make_state(config: ConfigDict, model: RMN, optimizer, image_shape: tuple[int, int, int], key) -> TrainState:
    """The state before the first step: fresh parameters, no momentum, memories at zero."""
    images, keys = jnp.zeros((2, *image_shape)), jax.random.split(key, 2)
    variables = initialise(model, jax.random.fold_in(key, 0), images, keys=keys)
    return _first_state(config, model, optimizer, variables)


def state_shapes(config: ConfigDict, model: RMN, optimizer, image_shape: tuple[int, int, int]) -> TrainState:
    """Shapes and dtypes of a state as ``jax.ShapeDtypeStruct``; nothing is computed."""

    def build() -> TrainState:
        key = jax.random.key(0)
        images, keys = jnp.zeros((2, *image_shape)), jax.random.split(key, 2)
        return _first_state(config, model, optimizer, model.init(key, images, keys=keys))

    return jax.eval_shape(build)


def _first_state(config: ConfigDict, model: RMN, optimizer, variables: Mapping[str, Any]) -> TrainState:
    num_stages = len(model.stages_with_memories)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        memory=variables.get("memory", {}),
        opt_state=optimizer.init(variables["params"]),
        metrics=Metrics.zeros(num_stages, model.num_units),
        ema=start_ema(variables["params"], config.ema),
        idle=jnp.zeros((num_stages, model.num_units), jnp.int32) if config.revive_after and model.routed else None,
    )
