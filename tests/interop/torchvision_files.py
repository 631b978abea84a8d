"""Names and shapes of torchvision's state dict of each backbone, independent of the package, with values by formula."""

import math
import zlib

import numpy as np

EFFICIENTNET = (
    (1, 3, 16, 1),
    (6, 3, 24, 2),
    (6, 5, 40, 2),
    (6, 3, 80, 3),
    (6, 5, 112, 3),
    (6, 5, 192, 4),
    (6, 3, 320, 1),
)
MOBILENET = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def conv(name, outputs, inputs, kernel, bias=False):
    shapes = {f"{name}.weight": (outputs, inputs, kernel, kernel)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name, channels):
    shapes = {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def resnet(depths, bottleneck, num_classes):
    shapes = conv("conv1", 64, 3, 7) | norm("bn1", 64)
    channels = 64
    for i, depth in enumerate(depths):
        width = 64 * 2**i
        out = width * (4 if bottleneck else 1)
        for j in range(depth):
            block = f"layer{i + 1}.{j}"
            sizes = [(width, 1), (width, 3), (out, 1)] if bottleneck else [(width, 3), (width, 3)]
            inputs = channels
            for k, (outputs, kernel) in enumerate(sizes):
                shapes |= conv(f"{block}.conv{k + 1}", outputs, inputs, kernel) | norm(f"{block}.bn{k + 1}", outputs)
                inputs = outputs
            if channels != out:
                shapes |= conv(f"{block}.downsample.0", out, channels, 1) | norm(f"{block}.downsample.1", out)
            channels = out
    return shapes | linear("fc", num_classes, channels)


def vgg(num_classes, width):
    shapes, position, channels = {}, 0, 3
    for outputs in VGG:
        if outputs == "pool":
            position += 1
            continue
        shapes |= conv(f"features.{position}", outputs, channels, 3, bias=True) | norm(
            f"features.{position + 1}", outputs
        )
        position, channels = position + 3, outputs
    sizes = ((width, 512 * 7 * 7), (width, width), (num_classes, width))
    for position, (outputs, inputs) in zip((0, 3, 6), sizes, strict=True):
        shapes |= linear(f"classifier.{position}", outputs, inputs)
    return shapes


def efficientnet(num_classes):
    shapes = conv("features.0.0", 32, 3, 3) | norm("features.0.1", 32)
    channels = 32
    for i, (expansion, kernel, out, depth) in enumerate(EFFICIENTNET):
        for j in range(depth):
            block, wide, k = f"features.{i + 1}.{j}.block", channels * expansion, 0
            if expansion != 1:
                shapes |= conv(f"{block}.0.0", wide, channels, 1) | norm(f"{block}.0.1", wide)
                k = 1
            shapes |= conv(f"{block}.{k}.0", wide, 1, kernel) | norm(f"{block}.{k}.1", wide)
            shapes |= conv(f"{block}.{k + 1}.fc1", channels // 4, wide, 1, bias=True)
            shapes |= conv(f"{block}.{k + 1}.fc2", wide, channels // 4, 1, bias=True)
            shapes |= conv(f"{block}.{k + 2}.0", out, wide, 1) | norm(f"{block}.{k + 2}.1", out)
            channels = out
    shapes |= conv("features.8.0", 1280, 320, 1) | norm("features.8.1", 1280)
    return shapes | linear("classifier.1", num_classes, 1280)


def mobilenet(num_classes, runs=MOBILENET):
    shapes = conv("features.0.0", 32, 3, 3) | norm("features.0.1", 32)
    channels, number = 32, 0
    for expansion, out, depth in runs:
        for _ in range(depth):
            number += 1
            block, wide, k = f"features.{number}.conv", channels * expansion, 0
            if expansion != 1:
                shapes |= conv(f"{block}.0.0", wide, channels, 1) | norm(f"{block}.0.1", wide)
                k = 1
            shapes |= conv(f"{block}.{k}.0", wide, 1, 3) | norm(f"{block}.{k}.1", wide)
            shapes |= conv(f"{block}.{k + 1}", out, wide, 1) | norm(f"{block}.{k + 2}", out)
            channels = out
    shapes |= conv(f"features.{number + 1}.0", 1280, channels, 1) | norm(f"features.{number + 1}.1", 1280)
    return shapes | linear("classifier.1", num_classes, 1280)


def convnext(num_classes, depths=(3, 3, 9, 3), width=96):
    both = lambda name, channels: {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}  # noqa: E731
    shapes, channels = conv("features.0.0", width, 3, 4, bias=True) | both("features.0.1", width), width
    for i, depth in enumerate(depths):
        if i:
            name = f"features.{2 * i}"
            shapes |= both(f"{name}.0", channels) | conv(f"{name}.1", 2 * channels, channels, 2, bias=True)
            channels *= 2
        for j in range(depth):
            block = f"features.{2 * i + 1}.{j}"
            shapes |= {f"{block}.layer_scale": (channels, 1, 1)} | conv(f"{block}.block.0", channels, 1, 7, bias=True)
            shapes |= both(f"{block}.block.2", channels) | linear(f"{block}.block.3", 4 * channels, channels)
            shapes |= linear(f"{block}.block.5", channels, 4 * channels)
    return shapes | both("classifier.0", channels) | linear("classifier.2", num_classes, channels)


RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
NAMES = (*RESNETS, "vgg16_bn", "mobilenet_v2", "efficientnet_b0", "convnext_tiny")


def shapes_of(name, num_classes, vgg_width=4096):
    """Name -> shape, in the order of the layers."""
    if name == "vgg16_bn":
        return vgg(num_classes, vgg_width)
    if name in RESNETS:
        return resnet(*RESNETS[name], num_classes)
    return {"efficientnet_b0": efficientnet, "mobilenet_v2": mobilenet, "convnext_tiny": convnext}[name](num_classes)


def digest(shapes):
    """A number that stands for all names and shapes of a state dict."""
    return zlib.crc32("\n".join(f"{name} {tuple(shapes[name])}" for name in sorted(shapes)).encode())


def uniform(name, size):
    """``size`` numbers in [-1, 1), each a function of the name and its position (the finaliser of MurmurHash3)."""
    v = np.arange(size, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        v = (v ^ (v >> np.uint32(shift))) * np.uint32(factor)
    v ^= v >> np.uint32(16)
    return (v.astype(np.float64) / 2**31 - 1).astype(np.float32)


def fill(shapes):
    """Name -> array: weights with variance 2 / fan-in, norms and statistics like those of a trained network."""
    arrays = {}
    for name, shape in shapes.items():
        if not shape:
            arrays[name] = np.asarray(7, np.int64)
            continue
        values = uniform(name, math.prod(shape)).reshape(shape)
        if len(shape) > 1:
            values *= math.sqrt(6 / math.prod(shape[1:]))
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = 1 + 0.3 * values
        else:
            values *= 0.1
        arrays[name] = values.astype(np.float32)
    return arrays


def images(batch, size):
    """[B, size, size, 3] float32 in [-2, 2), from a formula."""
    return 2 * uniform("images", batch * size * size * 3).reshape(batch, size, size, 3)
