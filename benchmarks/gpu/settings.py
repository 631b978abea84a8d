"""What is measured: the sizes of a full run, and those of a dry run on a CPU. Imports no JAX."""

from typing import Any, NamedTuple


class Group(NamedTuple):
    """A network at one size, with the RMNs to measure against it: each a number of units and an attention."""

    backbone: str
    image_size: int
    batch: int
    routed: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """As in "resnet18-64"."""
        return f"{self.backbone}-{self.image_size}"


EIGHT = ((8, "none"), (8, "conditional"))
GROUPS = (  # the most telling first: time may run out
    Group("resnet18", 64, 1024, (*EIGHT, (2, "none"), (4, "none"), (16, "none"))),
    Group("resnet50", 64, 1024, EIGHT),
    Group("efficientnet_b0", 64, 1024, EIGHT),
    Group("vgg16_bn", 64, 1024, EIGHT),
    Group("resnet50", 224, 1024, EIGHT),
)
DRY_GROUPS = (Group("tiny", 8, 16, ((4, "conditional"),)),)


class Settings(NamedTuple):
    """All that decides what is measured and how.

    Attributes:
      dry: a dry run: tiny sizes, the CPU, figures that mean nothing.
      groups: networks for ``step``.
      conv_networks: (name, image size) whose layers ``conv`` measures.
      conv_layers: how many layers of each; None is all.
      batch: B of ``conv`` and ``torch``; halved where memory does not hold it.
      num_units: N of ``conv``, ``torch`` and ``determinism``.
      backends: of the routed convolution; None is the automatic one in ``step``, both for GPUs in ``launches``, and in
        ``conv`` all but "loop" (which waits for the host), on a CPU all.
      loads: of ``conv``.
      passes: of ``conv``.
      rounds: samples of each side.
      sample_seconds: how long a sample lasts at least, for which a call is repeated.
      updates: of ``determinism``.
      peak_flops, bandwidth: the chip's, where its name is not known or another figure is wanted.
      chip: for ``floor``, whose figures to take.
      dtype: compute type.
    """

    dry: bool = False
    groups: tuple[Group, ...] = GROUPS
    conv_networks: tuple[tuple[str, int], ...] = (("resnet18", 64), ("resnet50", 224))
    conv_layers: int | None = None
    batch: int = 1024
    num_units: int = 8
    backends: tuple[str, ...] | None = None
    loads: tuple[str, ...] = ("random", "balanced", "zipf", "all-to-one")
    passes: tuple[str, ...] = ("together", "fwd", "dgrad", "wgrad")
    rounds: int = 10
    sample_seconds: float = 0.03
    updates: int = 5
    peak_flops: float | None = None
    bandwidth: float | None = None
    chip: str = "NVIDIA H200"
    dtype: str = "bfloat16"


def dry_run() -> Settings:
    """The same code at sizes that a CPU compiles and runs in seconds."""
    return Settings(
        dry=True,
        groups=DRY_GROUPS,
        conv_networks=(("tiny", 8),),
        conv_layers=2,
        batch=16,
        num_units=4,
        loads=("random", "all-to-one"),
        rounds=2,
        sample_seconds=0.0,
        updates=2,
        peak_flops=1e11,
        bandwidth=1e10,
        dtype="float32",
    )


def backbone_of(name: str, image_size: int) -> Any:
    """The backbone of that name for Tiny ImageNet's 200 or ImageNet's 1000 classes; "tiny" is the dry run's."""
    from rmn_jax.models import create_backbone
    from rmn_jax.models.resnet import BasicBlock, resnet

    if name == "tiny":
        return resnet(BasicBlock, (1,), 4, 10, stem_kernel=3, stem_strides=2, pool=False)
    return create_backbone(name, num_classes_of(image_size), image_size)


def num_classes_of(image_size: int) -> int:
    """K of the benchmark with images of that size."""
    return 10 if image_size < 32 else 200 if image_size <= 64 else 1000
