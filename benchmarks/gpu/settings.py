"""Sizes of a full run, and of a dry run on a CPU. Imports no JAX."""

from typing import Any, NamedTuple


class Group(NamedTuple):
    """A network at one size, and the RMNs to measure against it: (N, attention) for each."""

    backbone: str
    image_size: int
    batch: int
    routed: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """As in "resnet18-64"."""
        return f"{self.backbone}-{self.image_size}"


EIGHT = ((8, "none"), (8, "conditional"))
GROUPS = (  # the most important first, because the time may not suffice for all
    Group("resnet18", 64, 1024, (*EIGHT, (2, "none"), (4, "none"), (16, "none"))),
    Group("resnet50", 64, 1024, EIGHT),
    Group("efficientnet_b0", 64, 1024, EIGHT),
    Group("vgg16_bn", 64, 1024, EIGHT),
    Group("resnet50", 224, 1024, EIGHT),
)
DRY_GROUPS = (Group("tiny", 8, 16, ((4, "conditional"),)),)


class Settings(NamedTuple):
    """What is measured, and how.

    Attributes:
      dry: a dry run: tiny sizes on the CPU. Its times mean nothing.
      groups: networks of ``step``, ``floor`` and ``launches``.
      conv_networks: (name, image size) of the networks whose layers ``conv`` measures.
      conv_layers: number of layers of each network; None is all.
      batch: B of ``conv`` and ``torch``; halved if it does not fit in memory.
      num_units: N of ``conv``, ``torch``, ``determinism`` and ``floor``.
      backends: of the routed convolution. None is "auto" in ``step``, "scan" and "tiles" in ``launches``, and all in
        ``conv`` ("loop" only on a CPU, because it waits for the host).
      loads: of ``conv``.
      passes: of ``conv``; "together" first, because it matters most.
      rounds: samples of each side.
      sample_seconds: least duration of a sample, in seconds. A call is repeated to fill it.
      steps: number of training steps in ``determinism``.
      peak_flops: operations a second of the chip, instead of the known figure; None for the known one.
      bandwidth: bytes a second of its memory, likewise.
      chip: the name of the chip for ``floor``.
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
    steps: int = 5
    peak_flops: float | None = None
    bandwidth: float | None = None
    chip: str = "NVIDIA H200"
    dtype: str = "bfloat16"


def dry_run() -> Settings:
    """Settings for the same code at sizes that a CPU compiles and runs in seconds."""
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
        steps=2,
        peak_flops=1e11,
        bandwidth=1e10,
        dtype="float32",
    )


def backbone_of(name: str, image_size: int) -> Any:
    """The backbone of that name, for the classes of ``num_classes_of``; "tiny" is the backbone of the dry run."""
    from rmn_jax.models import create_backbone
    from rmn_jax.models.resnet import BasicBlock, resnet

    if name == "tiny":
        return resnet(BasicBlock, (1,), 4, 10, stem_kernel=3, stem_strides=2, pool=False)
    return create_backbone(name, num_classes_of(image_size), image_size)


def num_classes_of(image_size: int) -> int:
    """K of the data set with images of that size: 200 for Tiny ImageNet, 1000 for ImageNet, 10 for the dry run."""
    return 10 if image_size < 32 else 200 if image_size <= 64 else 1000
