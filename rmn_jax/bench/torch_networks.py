"""The backbones in PyTorch with torchvision's parameter names: what latencies and logits are held against.

The one module of the package that imports torch, which is no dependency: import it where torch is known to be there.
"""

import torch
import torch.nn.functional as F
from torch import nn

VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
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


class ResidualBlock(nn.Module):
    """Basic block, or bottleneck where ``out`` is not ``width``."""

    def __init__(self, channels, width, out, strides):
        super().__init__()
        # (outputs, kernel, strides) of each convolution; torchvision strides the bottleneck's 3x3.
        self.sizes = [(width, 3, strides), (width, 3, 1)]
        if out != width:
            self.sizes = [(width, 1, 1), (width, 3, strides), (out, 1, 1)]
        inputs = channels
        for k, (outputs, kernel, stride) in enumerate(self.sizes):
            self.add_module(f"conv{k + 1}", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False))
            self.add_module(f"bn{k + 1}", nn.BatchNorm2d(outputs))
            inputs = outputs
        if channels != out or strides != 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, strides, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):  # noqa: D102
        y = x
        for k in range(len(self.sizes)):
            y = getattr(self, f"bn{k + 1}")(getattr(self, f"conv{k + 1}")(y))
            if k < len(self.sizes) - 1:
                y = F.relu(y)
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
    """ResNet-18 or -50 at 224 pixels; ``small`` drops the first two downsamplings, as for 32 and 64 pixels."""

    def __init__(self, depths, expansion, num_classes, small=False):
        super().__init__()
        self.small = small
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 1 if small else 2, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for i, depth in enumerate(depths):
            width = 64 * 2**i
            blocks = []
            for j in range(depth):
                blocks.append(ResidualBlock(channels, width, width * expansion, 2 if i and not j else 1))
                channels = width * expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):  # noqa: D102
        x = F.relu(self.bn1(self.conv1(x)))
        x = x if self.small else F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class Vgg(nn.Module):
    """VGG-16 with batch norm."""

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

    def forward(self, x):  # noqa: D102
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


def conv_norm(inputs, outputs, kernel, strides=1, groups=1, active=True):
    """Convolution, norm and, where active, SiLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, strides, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.SiLU()] if active else []))


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean over pixels."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x):  # noqa: D102
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

    def forward(self, x):  # noqa: D102
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

    def forward(self, x):  # noqa: D102
        return self.classifier(self.features(x).mean((2, 3)))


def build(name, num_classes, vgg_width=4096, small=False):
    """A backbone by its name in ``rmn_jax.models``; ``small`` is for ResNets."""
    if name == "vgg16_bn":
        return Vgg(num_classes, vgg_width)
    if name == "efficientnet_b0":
        return EfficientNet(num_classes)
    depths, expansion = ((2, 2, 2, 2), 1) if name == "resnet18" else ((3, 4, 6, 3), 4)
    return ResNet(depths, expansion, num_classes, small)


def logits(name, arrays, images, vgg_width):
    """Logits [B, K] of images [B, H, W, 3] in evaluation mode, with the weights of ``arrays``."""
    classes = next(array for key, array in reversed(arrays.items()) if key.endswith("bias")).shape[0]
    model = build(name, classes, vgg_width).eval()
    model.load_state_dict({key: torch.tensor(array) for key, array in arrays.items()})
    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 3, 1, 2).contiguous()).numpy()
