"""From a config to a data set that feeds: which images, at which size, along which of the two paths."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np

from rmn_jax.data import statistics
from rmn_jax.data.decode import UnreadableImage, available_cores, decode, fit
from rmn_jax.data.device import DeviceDataset, SplitArrays, load_split
from rmn_jax.data.opening import open_image_set
from rmn_jax.data.placement import Placement
from rmn_jax.data.preprocess import AUGMENTATIONS, stored_shape
from rmn_jax.data.skipping import SkippedExamples
from rmn_jax.data.sources import ImageSet, Source
from rmn_jax.data.subset import first_classes
from rmn_jax.data.types import Dataset, DatasetInfo, Sizes
from rmn_jax.errors import UserError

FEEDS = ("auto", "device", "stream")

# Under `feed = "auto"` a set up to this size, decoded, lies on the device: Tiny ImageNet takes 1.35e9 bytes,
# CIFAR-100 1.8e8, ImageNet 2e11.
DEVICE_LIMIT_BYTES = 4 * 2**30


def load(
    config_data,
    *,
    batch_size: int,
    eval_batch_size: int,
    seed: int,
    sharding: jax.sharding.Sharding | None = None,
) -> Dataset:
    """Opens the data set that `config_data` names; see `docs/data.md` for its keys.

    Args:
        config_data: `config.data`.
        batch_size: global batch of training; the remainder of an epoch is dropped.
        eval_batch_size: global batch of evaluation; the last one is padded.
        seed: the run's seed, for the order of examples (and the crops, on the streamed path).
        sharding: cuts the batch axis over the devices; None places batches on the first device.

    Raises:
        UserError: an unknown name, a data set that is not there, unusable settings or images.
    """
    _check_config(config_data)
    placement = Placement(sharding)
    placement.check_batch_size("batch_size", batch_size)
    placement.check_batch_size("eval_batch_size", eval_batch_size)
    image_set = first_classes(open_image_set(config_data), config_data.classes)
    _check_splits(image_set, batch_size)
    image_shape = network_shape(config_data, image_set)
    feed = choose_feed(config_data, image_set, image_shape)
    skipped = SkippedExamples(config_data.skip_corrupt)
    sizes = Sizes(batch_size, eval_batch_size)
    if feed == "stream":
        from rmn_jax.data.stream import StreamDataset

        info = describe(image_set, image_shape, _streamed_statistics(image_set, image_shape, config_data), True)
        return StreamDataset(info, image_set, config_data, sizes, seed, placement, skipped)
    splits = load_splits(image_set, stored_shape(config_data.augment, image_shape), skipped)
    info = describe(image_set, image_shape, _stored_statistics(image_set, splits["train"]), False)
    return DeviceDataset(info, splits, sizes, seed, placement)


def _check_config(config_data) -> None:
    if config_data.feed not in FEEDS:
        raise UserError(f"config.data.feed is {config_data.feed!r}; use one of {', '.join(FEEDS)}.")
    if config_data.augment not in AUGMENTATIONS:
        raise UserError(f"config.data.augment is {config_data.augment!r}; use one of {', '.join(AUGMENTATIONS)}.")
    for key in ("image_size", "workers", "crop_padding"):
        if config_data[key] < 0:
            raise UserError(f"config.data.{key} is {config_data[key]}; it must be 0 or more.")


def _check_splits(image_set: ImageSet, batch_size: int) -> None:
    examples = len(image_set.train)
    if examples < batch_size:
        raise UserError(
            f"{image_set.name} has {examples} training images, fewer than one batch of {batch_size}; "
            f"set a batch size of at most {examples}."
        )
    if not len(image_set.evaluation):
        raise UserError(f"{image_set.name} has no images to evaluate on.")


def network_shape(config_data, image_set: ImageSet) -> tuple[int, int, int]:
    """Returns the shape (H, W, 3) the network is fed: of `image_size`, or of the images when that is 0."""
    if config_data.image_size:
        return config_data.image_size, config_data.image_size, 3
    if image_set.native_size is None:
        raise UserError(
            f"The images of {image_set.name} have different sizes; set config.data.image_size, for example to 224."
        )
    return *image_set.native_size, 3


def choose_feed(config_data, image_set: ImageSet, image_shape: tuple[int, int, int]) -> str:
    """Returns "device" or "stream": what the config says, or by the decoded size of both splits."""
    if config_data.feed != "auto":
        return config_data.feed
    examples = len(image_set.train) + len(image_set.evaluation)
    size = examples * int(np.prod(stored_shape(config_data.augment, image_shape)))
    return "device" if size <= DEVICE_LIMIT_BYTES else "stream"


def describe(
    image_set: ImageSet, image_shape: tuple[int, int, int], computed: statistics.Statistics, streamed: bool
) -> DatasetInfo:
    """Puts together the facts that a run stores."""
    return DatasetInfo(
        name=image_set.name,
        num_classes=len(image_set.class_names),
        image_shape=image_shape,
        class_names=image_set.class_names,
        mean=computed[0],
        std=computed[1],
        train_examples=len(image_set.train),
        eval_examples=len(image_set.evaluation),
        fingerprint=image_set.fingerprint,
        streamed=streamed,
    )


def load_splits(image_set: ImageSet, shape: tuple[int, int, int], skipped: SkippedExamples) -> dict[str, SplitArrays]:
    """Decodes both splits at `shape` (H, W, 3)."""
    sources = {"train": image_set.train, "eval": image_set.evaluation}
    classes = len(image_set.class_names)
    return {name: load_split(source, shape, classes, skipped) for name, source in sources.items()}


def _statistics_key(image_set: ImageSet, shape: tuple[int, ...]) -> str:
    return f"{image_set.fingerprint} {shape[0]}x{shape[1]}"


def _stored_statistics(image_set: ImageSet, train: SplitArrays) -> statistics.Statistics:
    chunks = (train.images[start : start + 1024] for start in range(0, len(train.images), 1024))
    key = _statistics_key(image_set, train.images.shape[1:])
    return statistics.load_or_compute(image_set.folder, key, partial(statistics.compute, chunks))


def _streamed_statistics(image_set: ImageSet, image_shape: tuple[int, int, int], config_data) -> statistics.Statistics:
    shape = stored_shape(config_data.augment, image_shape)
    chunks = _sampled_images(image_set.train, shape)
    key = _statistics_key(image_set, shape)
    if len(image_set.train) > statistics.SAMPLE:
        key += " sampled"  # or a run's mean would depend on which of the two feeds came here first
    return statistics.load_or_compute(image_set.folder, key, partial(statistics.compute, chunks))


def _sampled_images(source: Source, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields `statistics.SAMPLE` evenly spaced images (up to twice as many) at `shape`, as uint8 [n, H, W, 3]."""
    positions = range(0, len(source), max(1, len(source) // statistics.SAMPLE))

    def decode_chunk(start: int) -> np.ndarray:
        images = []
        for data, _ in source.read(positions[start : start + 64]):
            try:
                images.append(fit(decode(data), *shape[:2]))
            except UnreadableImage:
                continue  # whether it may be skipped is decided where it is used
        return np.stack(images) if images else np.zeros((0, *shape), np.uint8)

    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(decode_chunk, range(0, len(positions), 64))
