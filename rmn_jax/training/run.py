"""One run: configuration, mesh, data set, networks, run folder."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.errors import Preempted, UserError
from rmn_jax.files import write_file
from rmn_jax.training import lock
from rmn_jax.training import step as steps
from rmn_jax.training.best import BestState, SaveTimer
from rmn_jax.training.checkpoint import Checkpoints, Position
from rmn_jax.training.networks import Networks
from rmn_jax.training.optimizer import learning_rate
from rmn_jax.training.progress import METRICS_FILE, Reporter, read_metrics
from rmn_jax.training.run_folder import (
    CONFIG_FILE,
    DATASET_FILE,
    ORIGIN_FILE,
    describe_run,
    difference,
    read_info,
    read_run,
    run_path,
)
from rmn_jax.training.state import Phase, TrainState
from rmn_jax.training.stopping import StopRequest
from rmn_jax.training.trace import Trace


class Run:
    """A run in its folder.

    Args:
      config: complete, see ``rmn_jax.config``.
      workdir: created if absent. A folder with another run's configuration is refused and not changed.
      devices: to train on; None takes all.
      quiet: no progress on stderr.
      dataset: to train on in place of the one that ``config.data`` names, with its facts (for a dry run).

    Attributes:
      config: as given.
      workdir: as given.
      mesh: the devices.
      dataset: see ``rmn_jax.data.load``; ``info`` describes it, ``preprocess`` augments and normalises its images.
      networks: the plain and the routed network, see ``Networks``.
      steps_per_epoch: optimizer steps in an epoch; ``stem_steps`` of them in phase 1, ``total_steps`` in the run.
      reporter: progress and ``metrics.jsonl``.
      best: the best state since the last checkpoint; ``timer`` says when the next one is due by the clock.
      trace: of some steps, see ``Trace``; None traces nothing.
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
        dataset: data.Dataset | None = None,
    ):
        self.config = config
        self.workdir = run_path(workdir)
        self.mesh = steps.make_mesh(devices)
        configuration.validate(config, self.mesh.size, stored=(self.workdir / CONFIG_FILE).exists())
        if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise UserError("JAX_ENABLE_X64 is on, but runs are in float32; unset it, or set it to 0.")
        _check_same_run(config, self.workdir)
        self.dataset = dataset or data.load(
            config.data,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            seed=config.seed,
            sharding=steps.batch_sharding(self.mesh),
        )
        self.info = self.dataset.info
        _check_same_data(config, self.info, self.workdir)
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
        self.reporter = Reporter(self.workdir, quiet or jax.process_index() != 0, config.tensorboard)
        self.record = describe_run(config, self.info)
        self.checkpoints = Checkpoints(self.workdir, config.checkpoint.keep, self.reporter.say, self.record)
        self.best = BestState(self.checkpoints)
        self.timer = SaveTimer(config.checkpoint.every_minutes)
        self.trace: Trace | None = None
        self.stop = StopRequest()
        self._saved: Position | None = None

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Holds the run folder against other processes; creates it if absent.

        Raises:
          UserError: another process trains there, or the folder cannot be written.
        """
        if jax.process_index() != 0:
            yield
            return
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.workdir, error) from None
        with lock.own(self.workdir, self.reporter.say):
            yield

    def claim_workdir(self) -> None:
        """Writes ``config.json`` and ``dataset.json`` to the run folder.

        Raises:
          UserError: the folder cannot be written.
        """
        if jax.process_index() != 0:
            return
        try:
            # Before all others: a run with metrics but without this folder has lost its checkpoints.
            (self.workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.workdir):
                pass
            write_file(self.workdir / CONFIG_FILE, configuration.to_json(self.config))
            write_file(self.workdir / DATASET_FILE, json.dumps(self.info._asdict(), indent=2) + "\n")
        except OSError as error:
            raise _cannot_write(self.workdir, error) from None

    def phase_name(self, phase: Phase) -> str:
        """The name of a phase for people; a plain run has only one, "plain"."""
        return "plain" if self.config.method == "plain" else phase.label

    def initial_state(self, routed: bool = False) -> TrainState:
        """The state before the first step, on the devices."""
        return self.place(self.networks.initial_state(self.key, routed))

    def place(self, state: TrainState) -> TrainState:
        """The state on the devices: a copy on each, or with ``config.shard_units`` the units split over them."""
        shardings = self.networks.shardings(routed=bool(state.memory))
        if jax.process_count() == 1:
            return jax.device_put(state, shardings)

        def spread(leaf, sharding):
            if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf
            host = np.asarray(leaf)  # a leaf that is on the devices of all processes cannot be indexed
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        if isinstance(shardings, NamedSharding):
            return jax.tree.map(lambda leaf: spread(leaf, shardings), state)
        return jax.tree.map(spread, state, shardings)

    def restore(self, best: bool = False) -> tuple[TrainState, Position] | None:
        """The newest good checkpoint, or the best one, on the devices; None for a fresh run."""
        found = self.checkpoints.restore(lambda position: self.networks.state_shapes(position.phase.routed), best)
        if found is None:
            return None
        self._saved = found[1]
        return self.place(found[0]), found[1]

    def check_beginning(self) -> None:
        """Raises UserError for a run without a checkpoint that cannot begin anew: its weights did not come from it."""
        begun = (self.workdir / CONFIG_FILE).exists()
        without_stem = self.config.method == "rmn" and self.config.stem_epochs == 0
        if (self.workdir / ORIGIN_FILE).exists() or (begun and without_stem):
            raise UserError(
                f"{self.workdir} has no checkpoint, and its training does not begin with phase 1: the weights it began "
                "from are gone. Put its folder checkpoints back, or run `rmn import` into another --workdir."
            )

    def check_nothing_lost(self) -> None:
        """Raises UserError if a run without a checkpoint must have had one, by its ``metrics.jsonl``."""
        path = self.workdir / METRICS_FILE
        lines = read_metrics(path)
        config = self.config
        first_saved = min(config.checkpoint.every_epochs, config.stem_epochs or config.epochs)
        if (self.workdir / CONFIG_FILE).exists():
            first_saved = max(first_saved, read_run(self.workdir).config.checkpoint.every_epochs)
        last = max((line.get("epoch", 0) for line in lines), default=0)
        if lines and (last > first_saved or not (self.workdir / "checkpoints").is_dir()):
            raise UserError(
                f"{path} tells of {lines[-1]['step']} steps, but {self.workdir / 'checkpoints'} has no checkpoint; "
                f"put the checkpoints back, or start from the beginning in another --workdir."
            )

    def save(self, state: TrainState, phase: Phase, top1: float | None = None) -> None:
        """Saves a checkpoint of this state, and before it the best state since the last one.

        ``top1`` is the state's held-out accuracy; None if it was not evaluated.
        """
        position = Position(int(state.step), phase)
        held = self.best.take(position, top1)
        if held is not None:
            self.checkpoints.save(*held)
        self.checkpoints.save(state, position, top1)
        self.timer.restart()
        self._saved = position

    def stop_if_asked(self, state: TrainState, step: int, phase: Phase) -> None:
        """Saves and raises ``Preempted`` if the process was asked to stop; ``step`` is that of the state."""
        if self.stop.reached(step, phase):
            self.save_and_stop(state, step, phase)

    def save_and_stop(self, state: TrainState, step: int, phase: Phase) -> None:
        """Saves, unless this state is saved already, and raises ``Preempted``."""
        if self._saved != Position(step, phase):
            self.save(state, phase)
        raise Preempted(f"stopped after step {step}; the same command goes on from there")


def _cannot_write(workdir: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"cannot write to --workdir {workdir}: {error.strerror}; choose a folder that you may write to.")


def open_run(
    workdir: str | os.PathLike, config: ConfigDict | None = None, best: bool = False
) -> tuple[Run, TrainState, Position]:
    """A run that was trained, the state of its newest good checkpoint, and where that is.

    Args:
      workdir: its folder.
      config: its configuration, perhaps with other free keys; None is the stored one.
      best: take the best checkpoint by held-out top-1 instead of the newest.

    Raises:
      UserError: no run there, no checkpoint, or missing data.
    """
    stored = read_run(workdir)
    run = Run(stored.config if config is None else config, stored.path)
    found = run.restore(best)
    if found is None:
        raise UserError(f"{stored.path} has no checkpoint yet; run `rmn train` first.")
    return run, *found


def _check_same_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    path = workdir / CONFIG_FILE
    if not os.path.lexists(path):
        return
    differing = configuration.differences(read_run(workdir).config, config)
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        stored = configuration.from_json(path)
        if config.epochs > stored.epochs:  # the schedule depends on the end, so a run cannot grow in place
            raise UserError(
                f"{workdir} holds a run of {stored.epochs} epochs ({differing[0]}{more}), and its schedule ends there. "
                f"To train on from its weights: rmn import --from {workdir} --workdir NEW "
                f"--config.epochs={config.epochs - stored.epochs}, then rmn train --workdir NEW."
            )
        raise UserError(
            f"{workdir} holds a run of another configuration: {differing[0]}{more} (in {path}); "
            "give another --workdir, or the configuration it was started with."
        )


def _check_same_data(config: ConfigDict, info: data.DatasetInfo, workdir: pathlib.Path) -> None:
    """The data set on disk must be the one that the run began with, and ``dataset.json`` must describe it."""
    known = read_info(workdir)
    if known is None:
        return
    if known.num_classes != info.num_classes:
        raise UserError(
            f"the network in {workdir} has {known.num_classes} classes, the data set {info.name} has "
            f"{info.num_classes}; give the data it was made for, or import the weights again into another --workdir."
        )
    if not known.fingerprint:  # imported where the data set was not
        return
    if known.fingerprint != info.fingerprint:
        raise UserError(
            f"the data set {info.name} has changed since the run in {workdir} began (fingerprint in "
            f"{workdir / DATASET_FILE}); restore the old data, or start a new run in another --workdir."
        )
    recorded = {DATASET_FILE: describe_run(config, info)[DATASET_FILE]}
    differing = difference(recorded, describe_run(config, known))
    if differing:
        raise UserError(
            f"{workdir}/{differing.replace('this checkpoint was saved with', 'the data set says')}; "
            f"put {DATASET_FILE} (or the statistics beside the data) back as it was."
        )
