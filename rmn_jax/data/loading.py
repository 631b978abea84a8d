"""Opens a data set from a config: chooses the image size and the pipeline, and computes the statistics."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np

from rmn_jax.data import statistics
from rmn_jax.data.decode import UnreadableImage, available_cores, decode, fit
from rmn_jax.data.device import DeviceDataset, SplitArrays, load_split
from rmn_jax.data.opening import open_image_set
from rmn_jax.data.options import AugmentOptions, augment_options
from rmn_jax.data.placement import Placement
from rmn_jax.data.preprocess import stored_shape
from rmn_jax.data.skipping import SkippedExamples
from rmn_jax.data.sources import ImageSet, Source
from rmn_jax.data.specs import BatchSizes, Dataset, DatasetInfo
from rmn_jax.data.subset import first_classes
from rmn_jax.errors import UserError

PIPELINES = ("auto", "device", "stream")

# With ``pipeline = "auto"``, a data set up to this decoded size is kept in device memory. Tiny ImageNet has 1.35e9
# bytes, CIFAR-100 1.8e8, ImageNet 2e11.
DEVICE_LIMIT_BYTES = 4 * 2**30


def load(
    config_data,
    *,
    batch_size: int,
    eval_batch_size: int,
    seed: int,
    sharding: jax.sharding.Sharding | None = None,
) -> Dataset:
    """Opens the data set that ``config_data`` names; see ``docs/data.md`` for its keys.

    Args:
      config_data: ``config.data``.
      batch_size: global batch of training; the remainder of an epoch is dropped.
      eval_batch_size: global batch of evaluation; the last one is padded.
      seed: the run's seed, for the order of examples and, in the stream pipeline, the crops.
      sharding: shards the batch axis over the devices; None puts batches on the first local device.

    Raises:
      UserError: an unknown name, a missing data set, or unusable settings or images.
    """
    placement = Placement(sharding)
    placement.check_batch_size("batch_size", batch_size)
    placement.check_batch_size("eval_batch_size", eval_batch_size)
    repeats = _check_config(config_data).repeats
    if batch_size % repeats:
        raise UserError(
            f"batch_size is {batch_size}, not a multiple of config.data.repeats ({repeats}): an image of a batch is in "
            "it so many times."
        )
    image_set = open_images(config_data)
    _check_splits(image_set, batch_size)
    image_shape = _network_shape(config_data, image_set)
    pipeline = choose_pipeline(config_data, image_set, image_shape)
    skipped = SkippedExamples(config_data.skip_corrupt)
    sizes = BatchSizes(batch_size, eval_batch_size)
    if pipeline == "stream":
        # Imported here: Grain is slow to import, and only this pipeline needs it.
        from rmn_jax.data.stream import StreamDataset

        computed = statistics.given(config_data) or _streamed_statistics(image_set, image_shape, config_data)
        info = _dataset_info(image_set, image_shape, computed, True)
        return _with_notes(StreamDataset(info, image_set, config_data, sizes, seed, placement, skipped), image_set)
    splits = _load_splits(image_set, stored_shape(config_data.augment, image_shape), skipped)
    computed = statistics.given(config_data) or _stored_statistics(image_set, splits["train"])
    info = _dataset_info(image_set, image_shape, computed, False)
    return _with_notes(DeviceDataset(info, splits, sizes, seed, placement, repeats), image_set)


def _with_notes(dataset: Dataset, image_set: ImageSet) -> Dataset:
    info = dataset.info
    numbers = f"{info.num_classes} classes, {info.train_examples} training and {info.eval_examples} evaluation images"
    dataset.notes = image_set.notes or f"{info.name}: {numbers}"
    return dataset


def open_images(config_data) -> ImageSet:
    """The images of the data set that ``config_data`` names, not decoded, with the classes that it selects.

    Raises:
      UserError: as ``load``.
    """
    return first_classes(open_image_set(config_data), config_data.classes)


def describe(config_data) -> DatasetInfo:
    """The facts about a data set without decoding it; ``config_data`` must give its mean and standard deviation.

    Raises:
      UserError: as ``load``, or no mean and standard deviation.
    """
    _check_config(config_data)
    image_set = open_images(config_data)
    image_shape = _network_shape(config_data, image_set)
    streamed = choose_pipeline(config_data, image_set, image_shape) == "stream"
    return _dataset_info(image_set, image_shape, _given(config_data), streamed)


def placeholder(config_data, class_names: tuple[str, ...]) -> DatasetInfo:
    """Facts about a data set that is not here: its fingerprint is empty, its numbers of examples are 0.

    Raises:
      UserError: no ``image_size`` (it is that of the images), or no mean and standard deviation.
    """
    _check_config(config_data)
    size = config_data.image_size
    if not size:
        raise UserError(f"The data set {config_data.name} is not here; set config.data.image_size, for example to 224.")
    mean, std = _given(config_data)
    return DatasetInfo(config_data.name, len(class_names), (size, size, 3), class_names, mean, std, 0, 0, "")


def _given(config_data) -> statistics.Statistics:
    given = statistics.given(config_data)
    if given is None:
        raise UserError("config.data.mean and config.data.std are empty; set both.")
    return given


def _check_config(config_data) -> AugmentOptions:
    if config_data.pipeline not in PIPELINES:
        raise UserError(f"config.data.pipeline is {config_data.pipeline!r}; use one of {', '.join(PIPELINES)}.")
    options = augment_options(config_data)
    statistics.given(config_data)
    for key in ("image_size", "workers"):
        if config_data[key] < 0:
            raise UserError(f"config.data.{key} is {config_data[key]}; it must be 0 or more.")
    return options


def _check_splits(image_set: ImageSet, batch_size: int) -> None:
    examples = len(image_set.train)
    if examples < batch_size:
        raise UserError(
            f"{image_set.name} has {examples} training images, fewer than one batch of {batch_size}; "
            f"set a batch size of at most {examples}."
        )
    if not len(image_set.evaluation):
        raise UserError(f"{image_set.name} has no images to evaluate on; add an evaluation split.")


def _network_shape(config_data, image_set: ImageSet) -> tuple[int, int, int]:
    """Shape (H, W, 3) of the network's input: from ``image_size``, or that of the images if it is 0."""
    if config_data.image_size:
        return config_data.image_size, config_data.image_size, 3
    if image_set.native_size is None:
        raise UserError(
            f"The images of {image_set.name} have different sizes; set config.data.image_size, for example to 224."
        )
    return *image_set.native_size, 3


def choose_pipeline(config_data, image_set: ImageSet, image_shape: tuple[int, int, int]) -> str:
    """The pipeline, "device" or "stream": the config's choice or, for "auto", by the decoded size of both splits."""
    if config_data.pipeline != "auto":
        return config_data.pipeline
    examples = len(image_set.train) + len(image_set.evaluation)
    size = examples * int(np.prod(stored_shape(config_data.augment, image_shape)))
    return "device" if size <= DEVICE_LIMIT_BYTES else "stream"


def _dataset_info(
    image_set: ImageSet, image_shape: tuple[int, int, int], computed: statistics.Statistics, streamed: bool
) -> DatasetInfo:
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


def _load_splits(image_set: ImageSet, shape: tuple[int, int, int], skipped: SkippedExamples) -> dict[str, SplitArrays]:
    """Decodes both splits at ``shape`` (H, W, 3)."""
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
        key += " sampled"  # else the mean would depend on which pipeline stored its statistics first
    return statistics.load_or_compute(image_set.folder, key, partial(statistics.compute, chunks))


def _sampled_images(source: Source, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields between one and two times ``statistics.SAMPLE`` evenly spaced images at ``shape``: uint8 [n, H, W, 3].

    A smaller split is yielded whole.
    """
    positions = range(0, len(source), max(1, len(source) // statistics.SAMPLE))

    def decode_chunk(start: int) -> np.ndarray:
        images = []
        for data, _ in source.read(positions[start : start + 64]):
            try:
                images.append(fit(decode(data), *shape[:2]))
            except UnreadableImage:
                continue  # the pipeline decides whether the example may be skipped
        return np.stack(images) if images else np.zeros((0, *shape), np.uint8)

    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(decode_chunk, range(0, len(positions), 64))
