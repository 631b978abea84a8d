"""The data sets that a config can name, opened but not decoded."""

from collections.abc import Callable

from rmn_jax.data import digits, fingerprint
from rmn_jax.data.sources import ArraySource, ImageSet
from rmn_jax.errors import UserError


def _open_digits(config_data) -> ImageSet:
    arrays = digits.load_arrays()
    return ImageSet(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        native_size=(8, 8),
        train=ArraySource(*arrays["train"], "digits train"),
        evaluation=ArraySource(*arrays["eval"], "digits eval"),
        fingerprint=fingerprint.of_arrays(*arrays["train"], *arrays["eval"]),
        folder=None,
    )


def _open_folder(config_data) -> ImageSet:
    from rmn_jax.data import folder

    return folder.open_image_set(config_data.path)


def _open_tfds(config_data) -> ImageSet:
    # Imported here: tensorflow_datasets takes a second, and digits and folders do without it.
    from rmn_jax.data import tfds_source

    return tfds_source.open_image_set(config_data.name, config_data.data_dir)


_OPENERS: dict[str, Callable[..., ImageSet]] = {
    "digits": _open_digits,
    "cifar100": _open_tfds,
    "tiny_imagenet": _open_tfds,
    "imagenet2012": _open_tfds,
    "folder": _open_folder,
}


def open_image_set(config_data) -> ImageSet:
    """Returns the images `config_data.name` stands for, undecoded.

    Raises:
        UserError: unknown name, or the data set is not there; the line says which command prepares it.
    """
    name = config_data.name
    if name in _OPENERS:
        return _OPENERS[name](config_data)
    if name.startswith("tfds:"):
        return _open_tfds(config_data)
    raise UserError(f"Unknown data set {name!r}: use one of {', '.join(_OPENERS)}, or tfds:NAME.")
