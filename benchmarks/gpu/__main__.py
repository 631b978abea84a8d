"""The cost of routing on one GPU, in parts that can be stopped and continued.

    python -m benchmarks.gpu floor                       # least time of each layer; arithmetic, on any machine
    python -m benchmarks.gpu step --out=FILE --seconds=500
    python -m benchmarks.gpu conv torch determinism --out=FILE --seconds=500
    python -m benchmarks.gpu report --out=FILE           # tables in Markdown
    python -m benchmarks.gpu launches --out=FILE         # kernels of a step, compiled without a GPU
    python -m benchmarks.gpu kernels --out=FILE          # routed kernels for Hopper; six minutes
    python -m benchmarks.gpu kernels --apply=FILE        # their block sizes, as measured, into the package
    python -m benchmarks.gpu all --dry-run               # the same code, tiny, on a CPU

Each measurement is printed at once as a JSON line, and appended to FILE. The same command again measures what is
missing. Within ``--seconds``, a measurement is started only if the longest one so far would still fit.
"""

import argparse
import atexit
import importlib
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.gpu.record import Record
from benchmarks.gpu.settings import GROUPS, Settings, dry_run

PARTS = ("floor", "step", "conv", "torch", "determinism", "report")
WORDS = (*PARTS, "launches", "kernels", "all")
# Seconds of ``kernels`` where --seconds is not given.
_KERNELS_SECONDS = 330.0
MODULES = {"torch": "torch_eager"}


def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    parts = PARTS if "all" in arguments.parts else tuple(dict.fromkeys(arguments.parts))
    _set_environment(arguments.dry_run, parts)
    if len(parts) > 1:  # one process for each, so that none holds the GPU's memory while another measures
        _each_in_a_process(parts, arguments, sys.argv[1:] if argv is None else argv)
        return
    if arguments.apply:
        from benchmarks.gpu import kernels

        print(f"{len(kernels.apply(arguments.apply))} layers and passes have block sizes now")
        return
    seconds = arguments.seconds
    if parts[0] == "kernels" and not arguments.dry_run:
        seconds = seconds or _KERNELS_SECONDS
    record = Record(arguments.out, seconds)
    part = importlib.import_module(f"benchmarks.gpu.{MODULES.get(parts[0], parts[0])}")
    if parts[0] in ("step", "conv", "kernels"):
        _add_machine(record)
    part.run(_settings(arguments), record)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=WORDS)
    parser.add_argument("--out", help="the file of JSON lines")
    parser.add_argument("--seconds", type=float, help="the time for this command")
    parser.add_argument(
        "--apply", metavar="LINES", help="of kernels: write the fastest block sizes in this file of lines"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--networks", nargs="+", help="of step, floor and launches, for example resnet18-64")
    parser.add_argument("--batch", type=int, help="B of every part")
    parser.add_argument("--num_units", type=int, help="N of conv, torch, determinism and floor")
    parser.add_argument("--backends", nargs="+", help="of the routed convolution, in conv, step and launches")
    parser.add_argument("--units", type=int, nargs="+", help="of step and launches: only RMNs with these N")
    parser.add_argument("--loads", nargs="+", help="of conv")
    parser.add_argument("--passes", nargs="+", choices=("together", "fwd", "dgrad", "wgrad"), help="of conv")
    parser.add_argument("--conv_networks", nargs="+", help="of conv, for example resnet18-64")
    parser.add_argument("--rounds", type=int, help="samples of each side")
    parser.add_argument("--chip", help="of floor, for example 'NVIDIA H200'")
    parser.add_argument("--peak_flops", type=float, help="of the chip: dense operations a second, in the compute type")
    parser.add_argument("--bandwidth", type=float, help="of the chip's memory, in bytes a second")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    return parser.parse_args(argv)


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = dry_run() if arguments.dry_run else Settings()
    names = ("batch", "num_units", "rounds", "chip", "peak_flops", "bandwidth", "dtype")
    settings = settings._replace(**{name: value for name in names if (value := getattr(arguments, name)) is not None})
    for name in ("backends", "loads", "passes"):
        if getattr(arguments, name):
            settings = settings._replace(**{name: tuple(getattr(arguments, name))})
    if arguments.networks:
        groups = tuple(group for group in settings.groups if group.name in arguments.networks)
        if not groups:
            raise SystemExit(f"unknown networks {arguments.networks}; there are {[group.name for group in GROUPS]}")
        settings = settings._replace(groups=groups)
    if arguments.units:
        only = lambda group: tuple(pair for pair in group.routed if pair[0] in arguments.units)  # noqa: E731
        settings = settings._replace(groups=tuple(group._replace(routed=only(group)) for group in settings.groups))
    if arguments.batch:
        settings = settings._replace(groups=tuple(group._replace(batch=arguments.batch) for group in settings.groups))
    if arguments.conv_networks:
        pairs = (name.rsplit("-", 1) for name in arguments.conv_networks)
        settings = settings._replace(conv_networks=tuple((name, int(size)) for name, size in pairs))
    return settings


def _set_environment(dry: bool, parts: tuple[str, ...]) -> None:
    """Sets the variables that JAX reads at start; this process gets nearly all of the GPU's memory."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    if parts == ("launches",):
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    if not dry:
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # all processes of a dry run compile the same programs
        folder = tempfile.TemporaryDirectory()
        atexit.register(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def _each_in_a_process(parts: tuple[str, ...], arguments: argparse.Namespace, argv: list[str]) -> None:
    started = time.monotonic()
    options = [word for word in argv if word not in WORDS]  # a child with two parts would start children again
    failed = False
    for part in parts:
        command = [sys.executable, "-m", "benchmarks.gpu", part, *options]
        if arguments.seconds is not None:
            left = arguments.seconds - (time.monotonic() - started)
            if left <= 0:
                print(f"# out of time before {part}; run the same command again to continue", file=sys.stderr)
                break
            command.append(f"--seconds={left:.0f}")
        status = subprocess.run(command, check=False).returncode
        if status:
            print(f"# {part} ended with status {status}", file=sys.stderr)
            failed = True
    if failed:
        raise SystemExit(1)


def _add_machine(record: Record) -> None:
    from rmn_jax.bench.measure import machine

    found = machine()
    digest = "/".join(str(found[key]) for key in ("date", "device", "jax", "flax"))
    record.add({"id": f"machine/{digest}", "part": "machine", "command": " ".join(sys.argv[1:]), **found})


if __name__ == "__main__":
    main()
