"""``rmn train --dry_run``: what a run would train and need. Its steps are on random images; it writes nothing."""

import contextlib
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from rmn_jax import config as configuration
from rmn_jax import data
from rmn_jax.analysis.counts import count_parameters, trace_shapes
from rmn_jax.cli.arguments import table_console
from rmn_jax.data.placement import Placement
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.errors import UserError
from rmn_jax.training import step as steps
from rmn_jax.training.run import Run
from rmn_jax.training.run_folder import CONFIG_FILE, read_info, run_path
from rmn_jax.training.state import Phase, TrainState
from rmn_jax.training.tensorboard import check_installed
from rmn_jax.training.trace import Trace

_MOST_STEPS, _MOST_SECONDS = 10, 20.0


class Network(NamedTuple):
    """What was found of one of a run's networks.

    Attributes:
      phase: in which it is trained.
      name: of the phase, for people.
      steps: of the phase.
      parameters: number of trained values, of all units.
      multiply_adds: for one image, on the active path.
      bytes: of the state's parts over all devices, each counted once: parameters, optimizer, ema, statistics, memories.
      temporary_bytes: what a compiled step needs on a device beside arguments and results; None if unknown.
      state_bytes: of the state on each device of this process, by the device's number.
      seconds_per_step: median, on random images.
      load: share of each unit in those steps, S lists of N numbers; empty when plain.
    """

    phase: int
    name: str
    steps: int
    parameters: int
    multiply_adds: int
    bytes: dict[str, int]
    temporary_bytes: int | None
    state_bytes: dict[int, int]
    seconds_per_step: float
    load: list[list[float]]


class RandomImages:
    """A data set of random images in place of the real one, of the same shape; see ``rmn_jax.data.Dataset``."""

    def __init__(self, info: data.DatasetInfo, config: ConfigDict, mesh):
        self.info = info
        self.steps_per_epoch = info.train_examples // config.batch_size
        self.notes = f"{info.name}: random images in place of {info.train_examples} training images"
        self.close = lambda: None
        rng, size = np.random.default_rng(0), config.batch_size
        shape = info.image_shape if info.streamed else stored_shape(config.data.augment, info.image_shape)
        place = Placement(steps.batch_sharding(mesh)).batch
        self._batch: Any = {
            "image": place(rng.integers(0, 256, (size, *shape), np.uint8)),
            "label": place(rng.integers(0, info.num_classes, size, np.int32)),
            "index": place(np.arange(size, dtype=np.int32)),
            "mask": place(np.ones(size, bool)),
        }

    def train_batch(self, step: int) -> data.Batch:
        """The same batch at every step."""
        del step
        return self._batch

    def eval_batches(self, split: str = "eval", batch_size: int | None = None) -> Iterator[data.Batch]:
        """One training batch."""
        del split, batch_size
        yield self._batch


def dry_run(config: ConfigDict, workdir: str | None, profile: str | None = None) -> dict[str, Any]:
    """Prints the configuration and a table of its networks.

    Args:
      config: complete.
      workdir: of the run; None if it has none yet. It is compared, and not changed.
      profile: a folder for a trace of ten steps; None traces nothing.

    Returns:
      The JSON of the table.

    Raises:
      UserError: what `rmn train` would refuse, but for images that cannot be read.
    """
    run = _open(config, workdir)
    print(configuration.to_json(config), end="")
    trace = None if profile is None else Trace(pathlib.Path(profile), run.reporter.say)
    routed = config.method == "rmn"
    found = []
    if run.stem_steps:
        found.append(_measure(run, Phase.STEM, trace))
    if routed:
        found.append(_measure(run, Phase.ROUTED, trace))
    table_console(120).print(_table(run, found))
    note = run.networks.split_note()
    if note:
        run.reporter.say(note)
    return {
        "devices": run.mesh.size,
        "device": run.mesh.devices.flat[0].device_kind,
        "steps_per_epoch": run.steps_per_epoch,
        "steps": run.total_steps,
        "networks": [network._asdict() for network in found],
        "profile": profile,
    }


def _open(config: ConfigDict, workdir: str | None) -> Run:
    """The run on random images. Nothing of the real ones is decoded."""
    mesh = steps.make_mesh()
    if workdir is None:
        folder = pathlib.Path(tempfile.gettempdir()) / f"rmn_dry_run_{os.getpid()}"  # is never created
    else:
        folder = run_path(workdir)
    configuration.validate(config, mesh.size, stored=(folder / CONFIG_FILE).exists())
    if config.tensorboard:
        check_installed()
    info = read_info(folder)
    if info is None or not info.fingerprint:
        described = config.data.copy_and_resolve_references()
        if not described.mean:  # of the training images; no shape and no time depends on it
            described.mean, described.std = "0.5,0.5,0.5", "0.25,0.25,0.25"
        info = data.describe(described)
    if info.train_examples < config.batch_size:
        raise UserError(
            f"{info.name} has {info.train_examples} training images, fewer than one batch of {config.batch_size}; "
            f"set a batch size of at most {info.train_examples}."
        )
    return Run(config, folder, dataset=RandomImages(info, config, mesh))


def _measure(run: Run, phase: Phase, trace: Trace | None) -> Network:
    batch = run.dataset.train_batch(0)
    state = run.initial_state(routed=phase.routed)
    if phase.routed:
        state = run.place(state._replace(memory=_memories(run, state)))
    model = run.networks.model(phase.routed).clone(axis_name=None)  # one image has no other devices
    shapes = trace_shapes(model, run.info.image_shape[0])
    parts = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "ema": state.ema,
        "statistics": state.batch_stats,
        "memories": state.memory,
    }
    sizes = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for name, part in parts.items()}
    per_device = bytes_per_device(state)
    with run.reporter.compiling(f"training step of the {run.phase_name(phase)} network"):
        compiled = run.networks.train_step(phase.routed).lower(state, batch, run.key).compile()
    memory = compiled.memory_analysis()
    seconds, state = _time(run, compiled, state, phase, trace)
    load = np.asarray(jax.device_get(state.metrics.load), np.float64)
    return Network(
        phase=int(phase),
        name=run.phase_name(phase),
        steps=run.total_steps - run.stem_steps if phase.routed else run.stem_steps,
        parameters=count_parameters(shapes.variables),
        multiply_adds=shapes.multiply_adds,
        bytes=sizes,
        temporary_bytes=int(memory.temp_size_in_bytes) if memory else None,
        state_bytes=per_device,
        seconds_per_step=seconds,
        load=(load / np.maximum(load.sum(axis=1, keepdims=True), 1)).round(4).tolist(),
    )


def bytes_per_device(tree: Any) -> dict[int, int]:
    """What each device of this process holds of a pytree of arrays, by the device's number."""
    found: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found[shard.device.id] = found.get(shard.device.id, 0) + shard.data.nbytes
    return dict(sorted(found.items()))


def _memories(run: Run, state: TrainState) -> dict[str, jax.Array]:
    """Inputs of each routed stage, drawn from the batch. With memories of zeros one unit would receive everything."""
    stem = run.initial_state(routed=False)
    pooled, _ = run.networks.extract_step(routed=False)(stem.variables, run.dataset.train_batch(0), run.eval_key)
    found = {}
    for name, leaf in state.memory.items():
        rows = np.asarray(jax.device_get(pooled[int(name.removeprefix("memory")) - 1]))
        chosen = np.random.default_rng(0).choice(len(rows), len(leaf), replace=len(rows) < len(leaf))
        found[name] = jnp.asarray(rows[chosen], leaf.dtype)
    return found


def _time(run: Run, compiled, state: TrainState, phase: Phase, trace: Trace | None) -> tuple[float, TrainState]:
    """The median time of a step, over at most ten steps or twenty seconds, and the state after them."""
    batch = run.dataset.train_batch(0)
    if trace is not None:
        trace.begin_phase(phase)
    measured: list[float] = []
    steps_wanted = _MOST_STEPS + (0 if trace is None else 2)  # a trace begins after two steps
    begun = time.perf_counter()
    with trace or contextlib.nullcontext():
        for _ in range(1 + steps_wanted):
            started = time.perf_counter()
            state, loss = compiled(state, batch, run.key)
            jax.block_until_ready(state)
            measured.append(time.perf_counter() - started)
            if trace is not None:
                trace.after_step(loss)
            elif len(measured) > 1 and time.perf_counter() - begun > _MOST_SECONDS:
                break
    return statistics.median(measured[1:]), state


def _table(run: Run, found: list[Network]) -> Table:
    """A column for each network."""
    table = Table(title=f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, batch {run.config.batch_size}")
    table.add_column("")
    for network in found:
        table.add_column(f"{network.name} (phase {network.phase})", justify="right")
    rows: dict[str, list[str]] = {
        "parameters": [f"{network.parameters:,}" for network in found],
        "multiply-adds for an image": [f"{network.multiply_adds:,}" for network in found],
        **{f"memory: {part}": [_megabytes(network.bytes[part]) for network in found] for part in found[0].bytes},
        "memory: temporary, of a step, per device": [
            "unknown" if network.temporary_bytes is None else _megabytes(network.temporary_bytes) for network in found
        ],
        "state per device": [_per_device(network.state_bytes) for network in found],
        "load of a unit in these steps": [_loads(network.load) for network in found],
        "time of a step": [f"{network.seconds_per_step * 1e3:.1f} ms" for network in found],
        "steps": [f"{network.steps:,}" for network in found],
        "time of all steps": [_duration(network.seconds_per_step * network.steps) for network in found],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


def _per_device(sizes: dict[int, int]) -> str:
    if len(set(sizes.values())) == 1:
        return _megabytes(next(iter(sizes.values()))) + (" each" if len(sizes) > 1 else "")
    return ", ".join(f"{device}: {_megabytes(size)}" for device, size in sizes.items())


def _loads(load: list[list[float]]) -> str:
    return " | ".join(f"{min(stage):.0%}-{max(stage):.0%}" for stage in load) or "-"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
