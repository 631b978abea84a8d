"""Part ``determinism``: whether equal steps give equal bits, within one process and between two, and at what cost.

XLA reads its flags at start, so each run is a separate process: ``python -m benchmarks.gpu.determinism``. Within a
process the program is the same; only the order of parallel sums can differ. Between processes the compiler may also
choose different kernels, because it chooses them by timing.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import DRY_GROUPS, Group, Settings, backbone_of, num_classes_of

FLAGS = {
    "default": "",
    "deterministic_ops": "--xla_gpu_deterministic_ops=true",
    "exclude_nondeterministic_ops": "--xla_gpu_exclude_nondeterministic_ops=true",
}
PROCESSES = 2
GROUP = Group("resnet18", 64, 256, ())


def run(settings: Settings, record: Record) -> None:
    """Adds one line for each process, then one for each setting of the flags."""
    flags = dict(list(FLAGS.items())[:2]) if settings.dry else FLAGS
    group = DRY_GROUPS[0] if settings.dry else GROUP
    prefix = f"determinism/{group.name}/B{group.batch}/N{settings.num_units}/{settings.dtype}"
    for name, flag in flags.items():
        for number in range(PROCESSES):
            identity = f"{prefix}/{name}/process {number + 1}"
            if identity in record:
                continue
            if not record.go_on(identity):
                return
            found = _in_a_process(group, settings, flag, record.time_left())
            if found is None:
                return
            record.add({"id": identity, "part": "determinism", "flags": name, **found})
    lines = {line["id"]: line for line in record.lines}
    runs = {name: [lines[f"{prefix}/{name}/process {number + 1}"] for number in range(PROCESSES)] for name in flags}
    fastest = {name: min(line["milliseconds"] for line in processes) for name, processes in runs.items()}
    for name, processes in runs.items():
        digests = [line["digests"] for line in processes]
        line = {
            "id": f"{prefix}/{name}",
            "part": "determinism",
            "flags": name,
            "equal_within_a_process": all(len(set(pair)) == 1 for pair in digests),
            "equal_between_processes": len({digest for pair in digests for digest in pair}) == 1,
            "milliseconds": fastest[name],
            "ratio": round(fastest[name] / fastest["default"], 4),
        }
        record.add(line)


def _in_a_process(group: Group, settings: Settings, flag: str, seconds: float | None) -> dict[str, Any] | None:
    """The figures that a process with these flags prints; None when the time is over."""
    what = [list(group[:3]), settings.num_units, settings.steps, settings.dtype]
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    command = [sys.executable, "-m", "benchmarks.gpu.determinism", json.dumps(what)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print("# out of time; run the same command again to continue", file=sys.stderr)
        return None
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300], "digests": [], "milliseconds": float("nan")}
    return json.loads(done.stdout.splitlines()[-1])


def steps(group: Group, num_units: int, count: int, dtype: str) -> dict[str, Any]:
    """Runs the same ``count`` steps twice from the same state.

    Args:
      group: the network and batch.
      num_units: N.
      count: number of steps.
      dtype: compute type.

    Returns:
      ``digests`` of the parameters after each of the two runs, median ``milliseconds`` of a step, ``compile_seconds``.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rmn_jax.bench.step import Step, random_batch

    data = random_batch(group.batch, group.image_size, num_classes_of(group.image_size))
    backbone = backbone_of(group.backbone, group.image_size)
    step = Step(backbone, data, num_units, dtype=jnp.dtype(dtype))
    start = jax.device_get(step.state)
    digests, seconds = [], []
    for _ in range(2):
        step.state = jax.tree.map(jnp.asarray, start)
        for _ in range(count):
            started = time.perf_counter()
            jax.block_until_ready(step())
            seconds.append(time.perf_counter() - started)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(jax.device_get(step.state.params)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digests.append(digest.hexdigest()[:16])
    return {
        "digests": digests,
        "milliseconds": round(1e3 * float(np.median(seconds)), 3),
        "compile_seconds": round(step.compile_seconds, 1),
    }


if __name__ == "__main__":
    (_name, _size, _batch), _units, _count, _dtype = json.loads(sys.argv[1])
    print(json.dumps(steps(Group(_name, _size, _batch, ()), _units, _count, _dtype)))
