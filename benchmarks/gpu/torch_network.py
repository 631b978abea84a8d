"""ResNet-18 and its RMN in PyTorch: see ``benchmarks.gpu.torch_eager``. Axes: B inputs, N units, C channels, H W."""

import torch
import torch.nn.functional as F
from torch import nn

from rmn_jax.bench.measure import load_assignment


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, features: int, strides: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, strides, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut = nn.Identity()
        if channels != features or strides != 1:
            projection = nn.Conv2d(channels, features, 1, strides, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(features))

    def forward(self, x):
        """[B, C, H, W] -> [B, C', H', W']."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Routed(nn.Module):
    """A stage: N procedures and their memories. ``way`` is "masks" or "split"."""

    def __init__(self, procedures: list[nn.Module], channels: int, way: str):
        super().__init__()
        self.procedures, self.way = nn.ModuleList(procedures), way
        self.register_buffer("memory", torch.randn(len(procedures), channels))

    def forward(self, x, assignment):
        """[B, C, H, W] and [B] int64 -> [B, C', H', W']."""
        with torch.no_grad():
            pooled = x.float().mean((2, 3))
            torch.cdist(pooled, self.memory).argmin(1)  # what would be the assignment
            member = F.one_hot(assignment, len(self.procedures)).float()
            inputs = member.sum(0)[:, None]
            mean = member.T @ pooled / inputs.clamp(min=1)
            self.memory = torch.where(inputs > 0, torch.lerp(mean, self.memory, 0.9), self.memory)
        return self._masked(x, assignment) if self.way == "masks" else self._split(x, assignment)

    def _masked(self, x, assignment):
        result = None
        for unit, procedure in enumerate(self.procedures):
            rows = assignment == unit
            own = x[rows]
            if not len(own):
                continue
            y = procedure(own)
            if result is None:
                shape = (len(x), *y.shape[1:])
                result = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
            result[rows] = y
        return result

    def _split(self, x, assignment):
        order = torch.argsort(assignment, stable=True)
        sizes = torch.bincount(assignment, minlength=len(self.procedures)).tolist()
        parts = zip(self.procedures, x[order].split(sizes), strict=True)
        return torch.cat([procedure(part) for procedure, part in parts if len(part)])[torch.argsort(order)]


class Network(nn.Module):
    """ResNet-18 for small images (7x7 stem of stride 1, no pool), plain or routed."""

    def __init__(self, way: str, width: int, num_units: int, num_classes: int):
        super().__init__()
        self.way = way
        self.conv1 = nn.Conv2d(3, width, 7, 1, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        channels = width
        for i in range(4):
            features, strides = width * 2**i, 2 if i else 1
            copies = [
                nn.Sequential(Block(channels, features, strides), Block(features, features, 1))
                for _ in range(1 if way == "plain" else num_units)
            ]
            self.stages.append(copies[0] if way == "plain" else Routed(copies, channels, way))
            channels = features
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x, assignment):
        """[B, 3, H, W] and [4, B] -> logits [B, K]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage, own in zip(self.stages, assignment, strict=True):
            x = stage(x) if self.way == "plain" else stage(x, own)
        return self.head(x.mean((2, 3)))


class Update:
    """A network's update on a fixed batch of noise; calling it does one."""

    def __init__(self, way: str, size: int, width: int, batch: int, num_units: int, dtype: str, device: str):
        torch.manual_seed(0)
        self._network = Network(way, width, num_units, 200).to(device, memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(self._network.parameters(), 1e-4, momentum=0.9, fused=True)
        self._images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
        self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._label = torch.randint(0, 200, (batch,), device=device)
        plan = [torch.tensor(load_assignment("random", batch, num_units, seed)).long() for seed in range(4)]
        self._assignment = torch.stack(plan).to(device)
        self._context = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def __call__(self) -> None:
        """One update."""
        with self._context:
            logits = self._network(self._images.float() / 64 - 2, self._assignment)
            loss = F.cross_entropy(logits.float(), self._label)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
