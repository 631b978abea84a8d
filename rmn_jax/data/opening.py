"""Opens the data set that ``config.data.name`` names, without decoding it."""

import os
from collections.abc import Callable

from rmn_jax.data import digits, fingerprint, folder
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
    return folder.open_image_set(config_data.path)


def _open_tfds(config_data) -> ImageSet:
    # Imported here: tensorflow_datasets takes a second to import, and digits and folders do not need it.
    from rmn_jax.data import tfds_source

    return tfds_source.open_image_set(config_data.name, os.path.expanduser(config_data.data_dir))


_OPENERS: dict[str, Callable[..., ImageSet]] = {
    "digits": _open_digits,
    "cifar100": _open_tfds,
    "tiny_imagenet": _open_tfds,
    "imagenet2012": _open_tfds,
    "folder": _open_folder,
}


def open_image_set(config_data) -> ImageSet:
    """The data set named ``config_data.name``, not decoded.

    Raises:
      UserError: unknown name, or a missing data set; the message gives the command that prepares it.
    """
    name = config_data.name
    if name in _OPENERS:
        return _OPENERS[name](config_data)
    if name.startswith("tfds:"):
        return _open_tfds(config_data)
    raise UserError(f"Unknown data set {name!r}: use one of {', '.join(_OPENERS)}, or tfds:NAME.")
