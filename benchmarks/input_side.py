"""One input pipeline in a process of its own, for ``benchmarks.input_pipelines``: reads JPEG files, delivers batches.

    python -m benchmarks.input_side SIDE FOLDER BATCH BATCHES

The process and its one worker process share one core. For every line on standard input it takes BATCHES batches and
answers with a JSON line of the CPU seconds that they took, of both processes together.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable
from importlib import metadata

import numpy as np

SIZE = 224
IMAGES = "train"  # the folder of the training images, in class folders
_IDLE_SECONDS = 0.1

# Takes this many batches, uint8 [B, SIZE, SIZE, 3] as an array or a tensor.
Run = Callable[[int], None]

# What has to be closed at the end.
Closing = contextlib.ExitStack


def stream(folder: str, batch: int, batches: int, closing: Closing) -> Run:
    """The ``stream`` pipeline of this package, up to the array on JAX's device."""
    import jax

    from rmn_jax.config import default_config
    from rmn_jax.data import load

    data = default_config().data
    data.update(name="folder", path=folder, image_size=SIZE, augment="resized_crop_flip", pipeline="stream", workers=1)
    data.update(mean="0.5,0.5,0.5", std="0.5,0.5,0.5")  # otherwise they are computed first
    dataset = load(data, batch_size=batch, eval_batch_size=batch, seed=0)
    closing.callback(dataset.close)
    step = 0

    def run(count: int) -> None:
        nonlocal step
        for _ in range(count):
            check(jax.block_until_ready(dataset.train_batch(step)["image"]), batch)
            step += 1

    return run


def torch_pillow(folder: str, batch: int, batches: int, closing: Closing) -> Run:
    """PyTorch's DataLoader with torchvision's ImageFolder and RandomResizedCrop, which use Pillow."""
    from torchvision import datasets, transforms

    crop = transforms.RandomResizedCrop(SIZE)
    images = datasets.ImageFolder(os.path.join(folder, IMAGES), transforms.Compose([crop, _to_tensor]))
    return _data_loader(images, batch, batches)


def torch_opencv(folder: str, batch: int, batches: int, closing: Closing) -> Run:
    """PyTorch's DataLoader over images that OpenCV reads, crops and scales.

    The windows are drawn by this package: torchvision's draw costs more.
    """
    import cv2
    import torch
    from torchvision import datasets

    from rmn_jax.data.crop import sample_window

    generator = np.random.default_rng(0)

    def crop(image: np.ndarray):
        top, left, height, width = sample_window(generator, *image.shape[:2])
        part = image[top : top + height, left : left + width]
        return torch.from_numpy(cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR))

    def read(path: str) -> np.ndarray:
        return cv2.imread(path, cv2.IMREAD_COLOR_RGB)

    cv2.setNumThreads(1)
    return _data_loader(datasets.ImageFolder(os.path.join(folder, IMAGES), crop, loader=read), batch, batches)


SIDES = {
    "stream": stream,
    "torch-pillow": torch_pillow,
    "torch-opencv": torch_opencv,
    "torch-pillow-simd": torch_pillow,
}


def _to_tensor(image):
    """A uint8 tensor [H, W, 3]: cheaper than torchvision's transforms, which also move the channels first."""
    import torch

    return torch.from_numpy(np.array(image))


def _data_loader(images, batch: int, batches: int) -> Run:
    from torch.utils.data import DataLoader, RandomSampler

    # One epoch of the sampler is one round, so the worker starts once and never waits for the end of a short epoch.
    sampler = RandomSampler(images, replacement=True, num_samples=batch * batches)
    loader = DataLoader(images, batch, sampler=sampler, num_workers=1, persistent_workers=True)

    def run(count: int) -> None:
        if count != len(loader):
            raise ValueError(f"a round has {len(loader)} batches, not {count}")
        for image, _ in loader:
            check(image, batch)

    return run


def check(image, batch: int) -> None:
    """Raises unless the batch has the shape and type that all sides deliver."""
    if tuple(image.shape) != (batch, SIZE, SIZE, 3) or str(image.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"a batch is {image.dtype} of shape {tuple(image.shape)}")


def cpu_seconds(processes: list[int]) -> float:
    """CPU seconds of all threads of these processes so far."""
    # The identifier of another process's CPU clock on Linux, as in clock_getcpuclockid(3).
    return sum(time.clock_gettime((~process << 3) | 2) for process in processes)


def measured(run: Run, batches: int) -> dict[str, float]:
    """CPU seconds and wall-clock seconds of ``batches`` batches.

    A worker reads ahead. So a round begins and ends when it is idle, with the same number of batches ready.
    """
    started, before = time.perf_counter(), _when_idle()[0]
    started = time.perf_counter()
    run(batches)
    after, ended = _when_idle()
    return {"cpu": after - before, "wall": ended - started}


def _processes() -> list[int]:
    workers = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    return [os.getpid(), *workers]


def _when_idle() -> tuple[float, float]:
    """Waits until the processes do no more work. Returns their CPU seconds and the moment they became idle."""
    used, moment = cpu_seconds(_processes()), time.perf_counter()
    while True:
        time.sleep(_IDLE_SECONDS)
        now = cpu_seconds(_processes())
        if now - used < 0.05 * _IDLE_SECONDS:
            return now, moment
        used, moment = now, time.perf_counter()


def versions() -> dict[str, str]:
    """Versions of what decodes and loads, as far as it is imported."""
    modules = {"cv2": "opencv", "torch": "torch", "torchvision": "torchvision", "PIL": "pillow"}
    found = {name: sys.modules[module].__version__ for module, name in modules.items() if module in sys.modules}
    if "PIL" in sys.modules:
        from PIL import features

        found["pillow_libjpeg_turbo"] = features.version("libjpeg_turbo") or "none"
    if "grain" in sys.modules:
        found["grain"] = metadata.version("grain")
    return found


def installed(module: str) -> bool:
    """Whether a module can be imported; PyTorch and torchvision must fit each other."""
    if importlib.util.find_spec(module) is None:
        return False
    try:
        importlib.import_module(module)
    except Exception as error:  # torchvision raises RuntimeError if it was built for another PyTorch
        print(f"{module} cannot be imported: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    side, folder, batch, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if not pathlib.Path(folder, IMAGES).is_dir():
        raise SystemExit(f"there is no folder {folder}/{IMAGES}")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # workers inherit it
    if side != "stream" and not installed("torchvision"):
        print(json.dumps({"skipped": "PyTorch with torchvision is not installed"}), flush=True)
        return
    with contextlib.ExitStack() as closing:
        run = SIDES[side](folder, batch, batches, closing)
        run(batches)  # starts the worker
        if len(_processes()) != 2:
            raise RuntimeError("this pipeline does not have exactly one worker process")
        print(json.dumps({"versions": versions()}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(measured(run, batches)), flush=True)


if __name__ == "__main__":
    main()
