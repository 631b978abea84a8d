"""Reading safetensors files: names, shapes, and values as float32. Nothing is unpickled.

Every reader of such a file goes through ``open_tensors``. So a file that is cut off, or a tensor that is not
floating-point, gives the same error message everywhere.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from rmn_jax.errors import UserError

# Types that are read. Integers and types of 8 bits or fewer need scales, which this package does not know.
FLOATS = ("F64", "F32", "F16", "BF16")


class Tensors:
    """An open file.

    Attributes:
      metadata: texts by name, of the header.
      shapes: of all tensors, by name.
    """

    def __init__(self, file, path: str | pathlib.Path):
        self._file, self._path = file, path
        self.metadata: dict[str, str] = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in file.keys()}
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self._types = {name: part.get_dtype() for name, part in slices.items()}

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, float32.

        Raises:
          UserError: its type is not one of ``FLOATS``, or not all values are finite.
        """
        kind = self._types[name]
        if kind not in FLOATS:
            raise UserError(
                f"{self._path} has {name} as {kind}; only {', '.join(FLOATS)} are read. "
                "Save the weights as float32, in PyTorch by model.float()."
            )
        array = np.asarray(jnp.asarray(self._file.get_tensor(name), jnp.float32))
        if not np.isfinite(array).all():
            raise UserError(f"{self._path} has values that are not finite, in {name}; nothing was imported.")
        return array


@contextlib.contextmanager
def open_tensors(path: str | pathlib.Path, advice: str = "") -> Iterator[Tensors]:
    """Opens a safetensors file.

    Args:
      path: of the file.
      advice: is added to the message if it is not such a file.

    Raises:
      UserError: no such file, or not a readable safetensors file, also if this is found in the body of ``with``.
    """
    if pathlib.Path(path).exists() and not pathlib.Path(path).is_file():  # opening a FIFO would wait for ever
        raise UserError(f"{path} is not a file.{advice}")
    try:
        with safe_open(path, framework="flax") as file:
            yield Tensors(file, path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}).{advice}") from None
