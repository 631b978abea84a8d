"""Whole input pipelines on one core: this package's ``stream`` beside PyTorch's DataLoader, on the same JPEG files.

Every side is a process with one worker process, pinned to one core together (``benchmarks.input_side``). The sides take
turns; while one works, the others wait. What counts is the CPU time of both processes from the file to the batch, uint8
[B, 224, 224, 3]. No side flips: this package flips within the training step, and torchvision's flip is left out.
"""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.input_side import IMAGES

_CLASSES = 8


class Size(NamedTuple):
    """How much is measured: images in the folder, images in a batch, batches in a round, rounds."""

    images: int = 512
    batch: int = 64
    batches: int = 16
    rounds: int = 15


def write_folder(folder: pathlib.Path, images: Sequence[bytes]) -> None:
    """Writes JPEGs into class folders, and one image of each class for evaluation, which is not measured."""
    for number, data in enumerate(images):
        for split in (IMAGES, "val") if number < _CLASSES else (IMAGES,):
            file = folder / split / f"class_{number % _CLASSES}" / f"{number:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


class Side:
    """A process of ``benchmarks.input_side``, between two rounds idle."""

    def __init__(self, name: str, folder: pathlib.Path, size: Size, pillow_simd: str):
        self.name, self._images = name, size.batch * size.batches
        command = [sys.executable, "-m", "benchmarks.input_side", name, str(folder), str(size.batch), str(size.batches)]
        path = os.environ.get("PYTHONPATH", "")
        if name == "torch-pillow-simd":  # its package is also called PIL; the first one found is used
            path = os.pathsep.join(filter(None, (pillow_simd, path)))
        environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def measure(self) -> dict[str, float]:
        """Images per CPU second and per second of one round."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds = self._answer()
        return {key: self._images / seconds[key] for key in ("cpu", "wall")}

    def close(self) -> None:
        """Ends the process and its worker: its standard input ends."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended with status {self._process.wait()}")
        return json.loads(line)


def lines(
    folder: pathlib.Path, names: Sequence[str], size: Size, pillow_simd: str = "", fed: Sequence[int] = ()
) -> Iterator[dict[str, Any]]:
    """Measures the sides in turn and yields a JSON line for each: medians and quartiles, and the ratio to the first.

    Args:
      folder: from ``write_folder``.
      names: of ``input_side.SIDES``; ``torch-pillow-simd`` is skipped without ``pillow_simd``.
      size: how much is measured.
      pillow_simd: the ``site-packages`` of an environment with Pillow-SIMD.
      fed: as in ``feed``.
    """
    with contextlib.ExitStack() as stack:
        sides = []
        for name in names:
            if name == "torch-pillow-simd" and not pillow_simd:
                yield {"part": "pipelines", "side": name, "skipped": "no --pillow_simd"}
                continue
            side = Side(name, folder, size, pillow_simd)
            stack.callback(side.close)
            if "skipped" in side.about:
                yield {"part": "pipelines", "side": name, **side.about}
            else:
                sides.append(side)
        rates = _take_turns(sides, size.rounds)
    first = sides[0].name if sides else ""
    for side in sides:
        cpu = np.array(rates[side.name]["cpu"])
        yield {
            "part": "pipelines",
            "side": side.name,
            **size._asdict(),
            **summary("images_per_core_second", cpu),
            "images_per_second_on_one_core": round(float(np.median(rates[side.name]["wall"]))),
            **summary(f"ratio_to_{first}", cpu / np.array(rates[first]["cpu"])),
            **feed(cpu, fed),
            "versions": side.about["versions"],
        }


def _take_turns(sides: Sequence[Side], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Rates of every side, a value for each round. The order is random in each round; the first round is a warm-up."""
    rng = np.random.default_rng(0)
    rates: dict[str, dict[str, list[float]]] = {side.name: {"cpu": [], "wall": []} for side in sides}
    for turn in range(-1, rounds):
        for number in rng.permutation(len(sides)):
            found = sides[number].measure()
            if turn >= 0:
                for key, rate in found.items():
                    rates[sides[number].name][key].append(rate)
    return rates


def feed(rates: np.ndarray, fed: Sequence[int]) -> dict[str, Any]:
    """How many cores deliver ``fed`` images per second, by the median of the images per CPU second, as JSON keys."""
    return {"cores_to_feed": {str(wanted): math.ceil(wanted / np.median(rates)) for wanted in fed}} if fed else {}


def summary(key: str, values: np.ndarray) -> dict[str, Any]:
    """Median and quartiles as JSON keys."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    digits = 0 if middle >= 100 else 3
    rounded = [round(float(value), digits) if digits else round(float(value)) for value in (low, middle, high)]
    return {key: rounded[1], f"{key}_quartiles": [rounded[0], rounded[2]]}
