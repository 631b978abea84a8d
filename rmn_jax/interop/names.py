"""Names of the backbones' layers in torchvision and timm.

In this package a layer is a path of module names, for example ("stage2", "block1", "conv1"). In the two libraries it is
a dotted prefix, for example ``layer2.0.conv1``.
"""

from collections.abc import Callable

from rmn_jax.models import efficientnet, vgg

# Normalisation of the images that published weights of both libraries were trained on: of each channel in 0..1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Path = tuple[str, ...]
Namer = Callable[[Path], str]


def _resnet(path: Path) -> str:
    """Both libraries: ``conv1``, ``layer2.0.bn1``, ``layer2.0.downsample.0``, ``fc``."""
    if path[0] in ("stem", "head"):
        return path[1]
    stage, block, layer = path
    inner = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(layer, layer)
    return f"layer{_number(stage)}.{_number(block) - 1}.{inner}"


def _vgg(head: dict[str, str]) -> Namer:
    """Both libraries number all layers of ``features``: convolution, norm, ReLU, .., pool. They differ in the head.

    Args:
      head: layer of our head -> its name in the library.
    """
    numbered: dict[Path, str] = {}
    position = 0
    for i, block in enumerate(vgg.BLOCKS):
        part = "stem" if i == 0 else f"stage{i}"
        for j in range(len(block)):
            numbered[part, f"conv{j + 1}"] = f"features.{position}"
            numbered[part, f"bn{j + 1}"] = f"features.{position + 1}"
            position += 3
        position += 1
    for layer, name in head.items():
        numbered["head", layer] = name
    return numbered.__getitem__


def _efficientnet(ends: dict[Path, str], run_name: Callable[[int], str], layers: tuple[dict, dict]) -> Namer:
    """Both libraries number the runs of equal blocks, and the blocks within a run.

    Args:
      ends: names of the layers outside the blocks.
      run_name: number of a run, from 0 -> its name.
      layers: names of the layers in a block, without and with expansion.
    """
    blocks: dict[Path, tuple[str, dict]] = {}
    run = 0
    for i, runs in enumerate(efficientnet.STAGES):
        block = 0
        for (expansion, *_), length in runs:
            for j in range(length):
                block += 1
                blocks[f"stage{i + 1}", f"block{block}"] = f"{run_name(run)}.{j}", layers[expansion != 1]
            run += 1

    def name(path: Path) -> str:
        if path in ends:
            return ends[path]
        prefix, inner = blocks[path[:2]]
        return f"{prefix}.{inner[path[2:]]}"

    return name


def _torchvision_block(first: int) -> dict[Path, str]:
    """The layers of a block; ``first`` is the number of its depthwise convolution: 0 without expansion, 1 with."""
    pairs = {"depthwise": first, "project": first + 2} | ({"expand": 0} if first else {})
    names: dict[Path, str] = {
        ("se", "squeeze"): f"block.{first + 1}.fc1",
        ("se", "excite"): f"block.{first + 1}.fc2",
    }
    for kind, index in pairs.items():
        names[(f"{kind}_conv",)] = f"block.{index}.0"
        names[(f"{kind}_bn",)] = f"block.{index}.1"
    return names


_TIMM_SE: dict[Path, str] = {("se", "squeeze"): "se.conv_reduce", ("se", "excite"): "se.conv_expand"}
_TIMM_BLOCKS: tuple[dict[Path, str], dict[Path, str]] = (
    {
        ("depthwise_conv",): "conv_dw",
        ("depthwise_bn",): "bn1",
        ("project_conv",): "conv_pw",
        ("project_bn",): "bn2",
        **_TIMM_SE,
    },
    {
        ("expand_conv",): "conv_pw",
        ("expand_bn",): "bn1",
        ("depthwise_conv",): "conv_dw",
        ("depthwise_bn",): "bn2",
        ("project_conv",): "conv_pwl",
        ("project_bn",): "bn3",
        **_TIMM_SE,
    },
)


def _efficientnet_ends(stem_conv: str, stem_bn: str, head_conv: str, head_bn: str, classifier: str) -> dict[Path, str]:
    last = f"stage{len(efficientnet.STAGES)}"
    return {
        ("stem", "conv"): stem_conv,
        ("stem", "bn"): stem_bn,
        (last, "head_conv"): head_conv,
        (last, "head_bn"): head_bn,
        ("head", "fc"): classifier,
    }


# By backbone and library: the function from a layer's path to its name there.
NAMERS: dict[str, dict[str, Namer]] = {
    "resnet18": {"torchvision": _resnet, "timm": _resnet},
    "resnet50": {"torchvision": _resnet, "timm": _resnet},
    "vgg16_bn": {
        "torchvision": _vgg({"fc1": "classifier.0", "fc2": "classifier.3", "fc3": "classifier.6"}),
        "timm": _vgg({"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "fc3": "head.fc"}),
    },
    "efficientnet_b0": {
        "torchvision": _efficientnet(
            _efficientnet_ends("features.0.0", "features.0.1", "features.8.0", "features.8.1", "classifier.1"),
            lambda run: f"features.{run + 1}",
            (_torchvision_block(0), _torchvision_block(1)),
        ),
        "timm": _efficientnet(
            _efficientnet_ends("conv_stem", "bn1", "conv_head", "bn2", "classifier"),
            lambda run: f"blocks.{run}",
            _TIMM_BLOCKS,
        ),
    },
}
# The last linear layer of each backbone. Its width is the number of classes.
CLASSIFIER = {name: ("head", "fc3" if name == "vgg16_bn" else "fc") for name in NAMERS}


def _number(name: str) -> int:
    """``stage12`` -> 12."""
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
