"""One run: configuration, mesh, data set, networks, run folder."""

import json
import os
import pathlib
import tempfile

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.errors import Preempted, UserError
from rmn_jax.files import write_file
from rmn_jax.training import step as steps
from rmn_jax.training.checkpoint import Checkpoints, Position
from rmn_jax.training.networks import Networks
from rmn_jax.training.optimizer import learning_rate
from rmn_jax.training.progress import Reporter
from rmn_jax.training.state import Phase, TrainState
from rmn_jax.training.stopping import StopRequest

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"


class Run:
    """A run in its folder.

    Args:
      config: complete, see ``rmn_jax.config``.
      workdir: created if absent. A folder with another run's configuration is refused and not changed.
      devices: to train on; None takes all.
      quiet: no progress on stderr.

    Attributes:
      config: as given.
      workdir: as given.
      mesh: the devices.
      dataset: see ``rmn_jax.data.load``; ``info`` describes it, ``preprocess`` augments and normalises its images.
      networks: the plain and the routed network, see ``Networks``.
      steps_per_epoch: optimizer steps in an epoch; ``stem_steps`` of them in phase 1, ``total_steps`` in the run.
      reporter: progress and ``metrics.jsonl``.
      stop: see ``StopRequest``.

    Raises:
      UserError: a value that no run can use, a folder of another run or one that cannot be written, missing data.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike,
        devices=None,
        quiet: bool = False,
    ):
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
        self.steps_per_epoch = self.dataset.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        self.stem_steps = config.stem_epochs * self.steps_per_epoch if config.method == "rmn" else self.total_steps
        self.learning_rate = learning_rate(config, self.steps_per_epoch)
        self.networks = Networks(config, self.info, self.preprocess, self.mesh, self.steps_per_epoch)
        self.key = jax.random.key(config.seed)
        self.eval_key = jax.random.key(config.seed + 1)
        self.reporter = Reporter(self.workdir, quiet=quiet or jax.process_index() != 0)
        self.checkpoints = Checkpoints(self.workdir, config.checkpoint.keep, self.reporter.say)
        self.stop = StopRequest()
        self._saved: Position | None = None

    def claim_workdir(self) -> None:
        """Writes ``config.json`` and ``dataset.json`` to the run folder.

        Raises:
          UserError: the folder cannot be written.
        """
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

    def initial_state(self, routed: bool = False) -> TrainState:
        """The state before the first step, on the devices."""
        return self.place(self.networks.initial_state(self.key, routed))

    def place(self, state: TrainState) -> TrainState:
        """A copy of the state on every device."""
        everywhere = NamedSharding(self.mesh, P())
        if jax.process_count() == 1:
            return jax.device_put(state, everywhere)

        def spread(leaf):
            host = np.asarray(leaf)  # a leaf that is on the devices of all processes cannot be indexed
            return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

        return jax.tree.map(spread, state)

    def restore(self) -> tuple[TrainState, Position] | None:
        """The newest good checkpoint, on the devices; None for a fresh run."""
        found = self.checkpoints.restore(lambda position: self.networks.state_shapes(position.phase.routed))
        if found is None:
            return None
        self._saved = found[1]
        return self.place(found[0]), found[1]

    def save(self, state: TrainState, phase: Phase) -> None:
        """Saves a checkpoint of this state."""
        position = Position(int(state.step), phase)
        self.checkpoints.save(state, position)
        self._saved = position

    def stop_if_asked(self, state: TrainState, step: int, phase: Phase) -> None:
        """Saves and raises ``Preempted`` if the process was asked to stop; ``step`` is that of the state."""
        if self.stop.reached(step, phase):
            if self._saved != Position(step, phase):
                self.save(state, phase)
            raise Preempted(f"stopped after step {step}; the same command goes on from there")


def open_run(workdir: str | os.PathLike) -> tuple[Run, TrainState, Position]:
    """A run that was trained, the state of its newest good checkpoint, and where that is.

    Raises:
      UserError: no run there, no checkpoint, or missing data.
    """
    folder = pathlib.Path(workdir)
    run = Run(configuration.from_json(folder / CONFIG_FILE), folder)
    found = run.restore()
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet; run `rmn train` first.")
    return run, *found


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
        return  # cut short by a kill before the first step; it is written again
    if known.get("fingerprint") != info.fingerprint:
        raise UserError(
            f"the data set {info.name} has changed since the run in {workdir} began; "
            "restore the old data, or start a new run in another --workdir."
        )
