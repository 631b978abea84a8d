"""Names of EfficientNet's layers in torchvision and timm; timm's blocks of MobileNetV2 have the same names."""

from collections.abc import Callable
from typing import Any

from rmn_jax.models.names import LibraryNames, Namer, Path


def efficientnet_names(stages: tuple[Any, ...]) -> LibraryNames:
    """The names for stages in the form of ``efficientnet.STAGES``."""
    last = f"stage{len(stages)}"
    blocks = (_torchvision_block(0), _torchvision_block(1))
    ends = ("features.0.0", "features.0.1", "features.8.0", "features.8.1", "classifier.1")
    return LibraryNames(
        torchvision=_in_runs(stages, _ends(last, *ends), lambda run: f"features.{run + 1}", blocks),
        timm=timm_names(stages),
    )


def timm_names(stages: tuple[Any, ...]) -> Namer:
    """Timm's names, also of MobileNetV2."""
    ends = _ends(f"stage{len(stages)}", "conv_stem", "bn1", "conv_head", "bn2", "classifier")
    return _in_runs(stages, ends, lambda run: f"blocks.{run}", _TIMM_BLOCKS)


def _in_runs(
    stages: tuple[Any, ...], ends: dict[Path, str], run_name: Callable[[int], str], layers: tuple[dict, dict]
) -> Namer:
    """Both libraries number the runs of equal blocks, and the blocks within a run.

    Args:
      stages: in the form of ``efficientnet.STAGES``.
      ends: names of the layers outside the blocks.
      run_name: number of a run, from 0 -> its name.
      layers: names of the layers in a block, without and with expansion.
    """
    blocks: dict[Path, tuple[str, dict]] = {}
    run = 0
    for i, runs in enumerate(stages):
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


def _ends(last: str, stem_conv: str, stem_bn: str, head_conv: str, head_bn: str, classifier: str) -> dict[Path, str]:
    """The layers outside the blocks; ``last`` is the last stage."""
    return {
        ("stem", "conv"): stem_conv,
        ("stem", "bn"): stem_bn,
        (last, "head_conv"): head_conv,
        (last, "head_bn"): head_bn,
        ("head", "fc"): classifier,
    }


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
