"""How torchvision and timm call the layers of a backbone, for weights that come in and go out.

In this package a layer is a path of module names, for example ("stage2", "block1", "conv1"). In the two libraries it is
a dotted prefix, for example ``layer2.0.conv1``. The names of a backbone are in the backbone's own file.
"""

from collections.abc import Callable
from typing import NamedTuple

Path = tuple[str, ...]
Namer = Callable[[Path], str]


class LibraryNames(NamedTuple):
    """The names of a backbone's layers in the two libraries.

    Attributes:
      torchvision: from a layer's path to its name there.
      timm: likewise.
      classifier: the path of the last linear layer. Its width is the number of classes.
      linear: layers of blocks, by their own name, that are 1x1 convolutions here and linear layers there.
    """

    torchvision: Namer
    timm: Namer
    classifier: Path = ("head", "fc")
    linear: frozenset[str] = frozenset()

    @property
    def libraries(self) -> dict[str, Namer]:
        """The two functions by the name of the library."""
        return {"torchvision": self.torchvision, "timm": self.timm}


def number_in(name: str) -> int:
    """``stage12`` -> 12."""
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
