"""Part ``determinism``: do equal updates give equal bits, in one process and in two, and at what price?

XLA reads its flags when it starts, so each run is a process of its own: ``python -m benchmarks.gpu.determinism``.
Within a process the program is the same, and only the order of parallel sums can differ; between processes the
compiler may also have chosen other kernels, by time.
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
    """A line a process, then one a setting of the flags."""
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
    fastest = {name: min(run["milliseconds"] for run in own) for name, own in runs.items()}
    for name, own in runs.items():
        digests = [run["digests"] for run in own]
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
    """What a process with these flags prints; None when time is up."""
    what = [list(group[:3]), settings.num_units, settings.updates, settings.dtype]
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    command = [sys.executable, "-m", "benchmarks.gpu.determinism", json.dumps(what)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print("# stopped for time; the same command goes on", file=sys.stderr)
        return None
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:300], "digests": [], "milliseconds": float("nan")}
    return json.loads(done.stdout.splitlines()[-1])


def updates(group: Group, num_units: int, count: int, dtype: str) -> dict[str, Any]:
    """Twice the same ``count`` updates from the same state: a digest of the parameters after each, and the time."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rmn_jax.bench.step import Update, random_batch

    data = random_batch(group.batch, group.image_size, num_classes_of(group.image_size))
    backbone = backbone_of(group.backbone, group.image_size)
    update = Update(backbone, data, num_units, dtype=jnp.dtype(dtype))
    start = jax.device_get(update.state)
    digests, seconds = [], []
    for _ in range(2):
        update.state = jax.tree.map(jnp.asarray, start)
        for _ in range(count):
            started = time.perf_counter()
            jax.block_until_ready(update())
            seconds.append(time.perf_counter() - started)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(jax.device_get(update.state.params)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digests.append(digest.hexdigest()[:16])
    return {
        "digests": digests,
        "milliseconds": round(1e3 * float(np.median(seconds)), 3),
        "compile_seconds": round(update.compile_seconds, 1),
    }


if __name__ == "__main__":
    (_name, _size, _batch), _units, _count, _dtype = json.loads(sys.argv[1])
    print(json.dumps(updates(Group(_name, _size, _batch, ()), _units, _count, _dtype)))
