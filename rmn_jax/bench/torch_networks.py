"""The backbones in PyTorch, with torchvision's parameter names: the reference for latencies and logits.

This is the only module of the package that imports torch. Torch is not a dependency: import this module only where
torch is known to be installed.

Axes: B batch, H W height and width, C channels, K classes (see ``rmn_jax``). Feature maps are [B, C, H, W].
"""

import torch
import torch.nn.functional as F
from torch import nn

VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
# Blocks of each stage and expansion of a block.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 1),
    "resnet34": ((3, 4, 6, 3), 1),
    "resnet50": ((3, 4, 6, 3), 4),
    "resnet101": ((3, 4, 23, 3), 4),
}
NAMES = (*RESNETS, "vgg16_bn", "efficientnet_b0")
# (expansion, kernel, channels, depth) of each run of blocks.
EFFICIENTNET = (
    (1, 3, 16, 1),
    (6, 3, 24, 2),
    (6, 5, 40, 2),
    (6, 3, 80, 3),
    (6, 5, 112, 3),
    (6, 5, 192, 4),
    (6, 3, 320, 1),
)


def _conv(inputs, outputs, kernel, strides=1):
    return nn.Conv2d(inputs, outputs, kernel, strides, kernel // 2, bias=False)


class ResidualBlock(nn.Module):
    """Basic block (``expansion`` 1: two 3x3 convolutions), or bottleneck (1x1, 3x3, 1x1)."""

    def __init__(self, channels, width, expansion, strides):
        super().__init__()
        out = width * expansion
        if expansion == 1:
            convs = [_conv(channels, width, 3, strides), _conv(width, width, 3)]
        else:  # torchvision strides the bottleneck's 3x3
            convs = [_conv(channels, width, 1), _conv(width, width, 3, strides), _conv(width, out, 1)]
        for k, conv in enumerate(convs):
            self.add_module(f"conv{k + 1}", conv)
            self.add_module(f"bn{k + 1}", nn.BatchNorm2d(conv.out_channels))
        self.bottleneck = expansion != 1
        self.downsample = None
        if channels != out or strides != 1:
            self.downsample = nn.Sequential(_conv(channels, out, 1, strides), nn.BatchNorm2d(out))

    def forward(self, x):
        """[B, C, H, W] -> [B, C', H', W']."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """ResNet-18, -34, -50 or -101 for 224 pixels.

    Args:
      depths: blocks of each of the four stages.
      expansion: output channels of a block over its width.
      num_classes: K.
      small: drops the first two downsamplings, as for images of 32 and 64 pixels.
      width: channels of the stem.
    """

    def __init__(self, depths, expansion, num_classes, small=False, width=64):
        super().__init__()
        self.small = small
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 1 if small else 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(ResidualBlock(channels, width * 2**i, expansion, 2 if i and not j else 1))
                channels = width * 2**i * expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        """[B, 3, H, W] -> logits [B, K]."""
        return self.head(self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x))))))

    def stem(self, x):
        """[B, 3, H, W] -> the input of the first stage."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return x if self.small else F.max_pool2d(x, 3, 2, 1)

    def head(self, x):
        """[B, C, H, W] -> logits [B, K]."""
        return self.fc(x.mean((2, 3)))


class Vgg(nn.Module):
    """VGG-16 with batch norm; ``width`` is that of the two hidden linear layers."""

    def __init__(self, num_classes, width):
        super().__init__()
        layers, channels = [], 3
        for outputs in VGG:
            if isinstance(outputs, str):
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        self.features = nn.Sequential(*layers)
        linear = (nn.Linear(512 * 49, width), nn.Linear(width, width), nn.Linear(width, num_classes))
        self.classifier = nn.Sequential(
            linear[0], nn.ReLU(), nn.Dropout(), linear[1], nn.ReLU(), nn.Dropout(), linear[2]
        )

    def forward(self, x):
        """[B, 3, H, W] -> logits [B, K]."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


def conv_norm(inputs, outputs, kernel, strides=1, groups=1, active=True):
    """Convolution, batch norm and, if ``active``, SiLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, strides, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.SiLU()] if active else []))


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: a gate for each channel, from the mean over pixels."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        """[B, C, H, W] -> [B, C, H, W]."""
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-and-excitation."""

    def __init__(self, expansion, kernel, strides, inputs, outputs):
        super().__init__()
        wide = inputs * expansion
        layers = [conv_norm(inputs, wide, 1)] if expansion != 1 else []
        layers += [conv_norm(wide, wide, kernel, strides, wide), SqueezeExcitation(wide, inputs // 4)]
        self.block = nn.Sequential(*layers, conv_norm(wide, outputs, 1, active=False))
        self.shortcut = strides == 1 and inputs == outputs

    def forward(self, x):
        """[B, C, H, W] -> [B, C', H', W']."""
        return self.block(x) + (x if self.shortcut else 0)


class EfficientNet(nn.Module):
    """EfficientNet-B0 at 224 pixels."""

    def __init__(self, num_classes):
        super().__init__()
        parts, channels = [conv_norm(3, 32, 3, 2)], 32
        for (expansion, kernel, out, depth), strides in zip(EFFICIENTNET, (1, 2, 2, 2, 1, 2, 1), strict=True):
            blocks = []
            for j in range(depth):
                blocks.append(MBConv(expansion, kernel, 1 if j else strides, channels, out))
                channels = out
            parts.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*parts, conv_norm(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x):
        """[B, 3, H, W] -> logits [B, K]."""
        return self.classifier(self.features(x).mean((2, 3)))


def build(name, num_classes, vgg_width=4096, small=False):
    """A backbone by its name in ``rmn_jax.models``, one of ``NAMES``; for ``small`` see ``ResNet``."""
    if name == "vgg16_bn":
        return Vgg(num_classes, vgg_width)
    if name == "efficientnet_b0":
        return EfficientNet(num_classes)
    return ResNet(*RESNETS[name], num_classes, small)


def logits(name, arrays, images, vgg_width):
    """Logits in evaluation mode.

    Args:
      name: of the backbone, see ``build``.
      arrays: its weights and running statistics by torchvision's names.
      images: [B, H, W, 3] float32.
      vgg_width: see ``Vgg``.

    Returns:
      [B, K] float32.
    """
    classes = next(array for key, array in reversed(arrays.items()) if key.endswith("bias")).shape[0]
    model = build(name, classes, vgg_width).eval()
    model.load_state_dict({key: torch.tensor(array) for key, array in arrays.items()})
    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 3, 1, 2).contiguous()).numpy()
