"""What does not change during a run: its settings, devices, data, networks and folder."""

import contextlib
import json
import os
import pathlib
import signal
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.errors import Preempted, UserError
from rmn_jax.models import RMN, create_backbone, initialise
from rmn_jax.train import step as steps
from rmn_jax.train.average import start_average
from rmn_jax.train.checkpoint import Checkpoints, Position
from rmn_jax.train.optimizer import learning_rate, make_optimizer
from rmn_jax.train.progress import Reporter
from rmn_jax.train.state import Metrics, TrainState

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"


class Run:
    """A run in its folder.

    Args:
      config: complete, see ``rmn_jax.config``.
      workdir: created if absent; a folder with another run's configuration is refused, untouched.
      devices: to train on; None takes all.
      quiet: no progress on stderr.

    Raises:
      UserError: a value no run can use, a folder of another run or one that cannot be written, missing data.
    """

    def __init__(self, config: ConfigDict, workdir: str | os.PathLike, devices=None, quiet: bool = False):
        self.config = config
        self.workdir = pathlib.Path(workdir)
        self.mesh = steps.make_mesh(devices)
        configuration.validate(config, self.mesh.size)
        _check_same_run(config, self.workdir)
        self.dataset = data.load(
            config.data,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            seed=config.seed,
            sharding=steps.batch_sharding(self.mesh),
        )
        self.info = self.dataset.info
        _check_same_data(self.info, self.workdir)
        if config.method == "rmn" and self.info.train_examples < config.model.num_units:
            raise UserError(
                f"{self.info.train_examples} training images cannot initialise {config.model.num_units} memories; "
                f"set config.model.num_units to {self.info.train_examples} or less."
            )
        self.preprocess = data.make_preprocess(config.data, self.info)
        self.updates_per_epoch = self.dataset.updates_per_epoch
        self.total_updates = config.epochs * self.updates_per_epoch
        self.stem_updates = (
            config.stem_epochs * self.updates_per_epoch if config.method == "rmn" else self.total_updates
        )
        self.learning_rate = learning_rate(config, self.updates_per_epoch)
        self.optimizer = make_optimizer(config, self.updates_per_epoch)
        self.key = jax.random.key(config.seed)
        self.eval_key = jax.random.key(config.seed + 1)
        self._train_steps: dict[bool, Any] = {}
        self._eval_steps: dict[bool, Any] = {}
        self.reporter = Reporter(self.workdir, quiet=quiet or jax.process_index() != 0)
        self.checkpoints = Checkpoints(self.workdir, config.checkpoint.keep, self.reporter.say)
        self.stop_requested = False
        self._saved: Position | None = None
        self._asked = 0

    def claim_workdir(self) -> None:
        """Makes the folder this run's: writes the resolved configuration and what is known of the data set."""
        if jax.process_index() != 0:
            return
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.workdir):
                pass
            write_file(self.workdir / CONFIG_FILE, configuration.to_json(self.config))
            write_file(self.workdir / DATASET_FILE, json.dumps(self.info._asdict(), indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write to --workdir {self.workdir}: {error.strerror}; choose a folder that you may write to."
            ) from None

    def model(self, routed: bool) -> RMN:
        """The plain network (step 1, "Original") or the routed one, over the same backbone."""
        return build_model(self.config, self.info.num_classes, self.info.image_shape[0], routed)

    def train_step(self, routed: bool):
        """The jitted update of the plain or the routed network, compiled once."""
        if routed not in self._train_steps:
            self._train_steps[routed] = steps.make_train_step(
                self.model(routed),
                self.optimizer,
                self.preprocess.train,
                self.mesh,
                alpha=self.config.model.memory_momentum,
                label_smoothing=self.config.label_smoothing,
                mixup=self.config.mixup,
                accumulation=self.config.accumulation,
                ema=self.config.ema,
                unit_gradient=self.config.unit_gradient,
                balance_loss=self.config.balance_loss,
            )
        return self._train_steps[routed]

    def eval_step(self, routed: bool):
        """The jitted evaluation of a batch, compiled once."""
        if routed not in self._eval_steps:
            self._eval_steps[routed] = steps.make_eval_step(self.model(routed), self.preprocess.evaluate, self.mesh)
        return self._eval_steps[routed]

    def initial_state(self, routed: bool = False) -> TrainState:
        """The state before the first update."""
        return make_state(self.config, self.model(routed), self.optimizer, self.info.image_shape, self.key)

    def state_shapes(self, routed: bool) -> TrainState:
        """The shapes and dtypes of a state: what a checkpoint is restored to."""
        return state_shapes(self.config, self.model(routed), self.optimizer, self.info.image_shape)

    def place(self, state: TrainState) -> TrainState:
        """A copy of the state on every device."""
        everywhere = NamedSharding(self.mesh, P())
        if jax.process_count() == 1:
            return jax.device_put(state, everywhere)

        def spread(leaf):
            host = np.asarray(leaf)  # a leaf that is already on all processes' devices cannot be indexed
            return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

        return jax.tree.map(spread, state)

    def restore(self) -> tuple[TrainState, Position] | None:
        """The newest good checkpoint, on the devices; None for a fresh run."""
        found = self.checkpoints.restore(lambda position: self.state_shapes(routed=position.step > 1))
        if found is None:
            return None
        self._saved = found[1]
        return self.place(found[0]), found[1]

    def save(self, state: TrainState, step: int) -> None:
        """A checkpoint of this state."""
        position = Position(int(state.update), step)
        self.checkpoints.save(state, position)
        self._saved = position

    def should_stop(self, update: int, step: int) -> bool:
        """Whether to stop here, after ``update`` updates in ``step``; asked between updates and between steps.

        Several processes stop together, at the place they agree on once one of them has had a SIGTERM.
        """
        del update, step
        if jax.process_count() > 1:
            self._asked += 1
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self.stop_requested

    def check_stop(self, state: TrainState, update: int, step: int) -> None:
        """Saves and raises ``Preempted`` if the process was asked to stop."""
        if self.should_stop(update, step):
            if self._saved != Position(update, step):
                self.save(state, step)
            raise Preempted(f"stopped after update {update}; the same command goes on from there")

    @contextlib.contextmanager
    def stopping_on_signals(self):
        """SIGTERM and the first Ctrl-C set a flag that the loop reads between updates.

        With several processes JAX itself listens for SIGTERM, and would not if a handler took its place.
        """
        if jax.process_count() > 1:
            yield
            return

        def request(signum, frame):
            del frame
            self.stop_requested = True
            if signum == signal.SIGINT:  # a second Ctrl-C stops at once
                signal.signal(signal.SIGINT, signal.default_int_handler)

        previous = {}
        with contextlib.suppress(ValueError):  # not in the main thread: someone else handles signals
            previous = {s: signal.signal(s, request) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def compute_dtype(config: ConfigDict):
    """The convolutions' type: as configured, or bfloat16 on accelerators and float32 on CPU."""
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def build_model(config: ConfigDict, num_classes: int, image_size: int, routed: bool) -> RMN:
    """The network of a configuration, for use inside ``shard_map`` over the axis ``data`` (or in evaluation)."""
    return RMN(
        create_backbone(config.model.backbone, num_classes, image_size, config.model.small_stem, config.model.width),
        num_units=config.model.num_units,
        routed=routed,
        attention=config.model.attention,
        axis_name=steps.AXIS,
        dtype=compute_dtype(config),
        backend=config.model.backend,
        router=config.model.router,
        metric=config.model.metric,
    )


def make_state(config: ConfigDict, model: RMN, optimizer, image_shape: tuple[int, int, int], key) -> TrainState:
    """A state before the first update: fresh parameters, no momentum, memories at zero."""
    images, keys = jnp.zeros((2, *image_shape)), jax.random.split(key, 2)
    variables = initialise(model, jax.random.fold_in(key, 0), images, keys=keys)
    return _first_state(config, model, optimizer, variables)


def state_shapes(config: ConfigDict, model: RMN, optimizer, image_shape: tuple[int, int, int]) -> TrainState:
    """The shapes and dtypes of a state, as ``jax.ShapeDtypeStruct``s; nothing is computed."""

    def build() -> TrainState:
        key = jax.random.key(0)
        images, keys = jnp.zeros((2, *image_shape)), jax.random.split(key, 2)
        return _first_state(config, model, optimizer, model.init(key, images, keys=keys))

    return jax.eval_shape(build)


def _first_state(config: ConfigDict, model: RMN, optimizer, variables: Mapping[str, Any]) -> TrainState:
    num_stages = len(model.backbone.stages) if model.routed else 0
    return TrainState(
        update=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        memory=variables.get("memory", {}),
        opt_state=optimizer.init(variables["params"]),
        metrics=Metrics.zeros(num_stages, model.num_units),
        average=start_average(variables["params"], config.ema),
    )


def _check_same_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a folder.")
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    differing = configuration.differences(configuration.from_json(path), config)
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UserError(
            f"{workdir} holds a run of another configuration: {differing[0]}{more}; "
            "give another --workdir, or the configuration it was started with."
        )


def _check_same_data(info: data.DatasetInfo, workdir: pathlib.Path) -> None:
    path = workdir / DATASET_FILE
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text())
    except ValueError:
        return  # cut short by a kill before the first update; it is written anew
    if known.get("fingerprint") != info.fingerprint:
        raise UserError(
            f"the data set {info.name} has changed since the run in {workdir} began; "
            "restore the old data, or start a new run in another --workdir."
        )


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a small file whole or not at all; into a device or pipe, which has no place to take, as it is."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_text(text)
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.rename(path)
