"""ResNet-18 and its RMN in PyTorch: the networks of ``benchmarks.gpu.torch_eager``.

Axes: B batch, N units, H W height and width, C channels, K classes (see ``rmn_jax``). Feature maps are [B, C, H, W].
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from rmn_jax.bench.measure import load_assignment
from rmn_jax.bench.torch_networks import RESNETS, ResNet

STAGES = 4


class RoutedStage(nn.Module):
    """N copies of a stage, each with a memory.

    Args:
      stage: the plain stage.
      channels: C of its input.
      num_units: N.
      dispatch: how rows reach their unit, "masks" or "split" (see ``benchmarks.gpu.torch_eager``).
    """

    def __init__(self, stage: nn.Module, channels: int, num_units: int, dispatch: str):
        super().__init__()
        self.procedures = nn.ModuleList(copy.deepcopy(stage) for _ in range(num_units))
        self.dispatch = dispatch
        self.register_buffer("memory", torch.randn(num_units, channels))

    def forward(self, x, assignment):
        """[B, C, H, W] and [B] int64 -> [B, C', H', W']."""
        with torch.no_grad():
            pooled = x.float().mean((2, 3))
            # The nearest memories are computed, because routing costs this, but the given assignment is used.
            torch.cdist(pooled, self.memory).argmin(1)
            member = F.one_hot(assignment, len(self.procedures)).float()
            inputs = member.sum(0)[:, None]
            mean = member.T @ pooled / inputs.clamp(min=1)
            self.memory = torch.where(inputs > 0, torch.lerp(mean, self.memory, 0.9), self.memory)
        return self._masks(x, assignment) if self.dispatch == "masks" else self._split(x, assignment)

    def _masks(self, x, assignment):
        result = None
        for unit, procedure in enumerate(self.procedures):
            mask = assignment == unit
            rows = x[mask]
            if not len(rows):
                continue
            y = procedure(rows)
            if result is None:
                shape = (len(x), *y.shape[1:])
                result = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
            result[mask] = y
        return result

    def _split(self, x, assignment):
        order = torch.argsort(assignment, stable=True)
        group_sizes = torch.bincount(assignment, minlength=len(self.procedures)).tolist()
        groups = zip(self.procedures, x[order].split(group_sizes), strict=True)
        return torch.cat([procedure(rows) for procedure, rows in groups if len(rows)])[torch.argsort(order)]


class Network(ResNet):
    """ResNet-18 for small images (7x7 stem of stride 1, no max-pool), plain or with routed stages.

    Args:
      side: "plain", or the ``dispatch`` of its routed stages.
      width: channels of the stem.
      num_units: N.
      num_classes: K.
    """

    def __init__(self, side: str, width: int, num_units: int, num_classes: int):
        super().__init__(*RESNETS["resnet18"], num_classes, small=True, width=width)
        self.routed = side != "plain"
        if self.routed:
            for name in self._stages():
                stage = getattr(self, name)
                setattr(self, name, RoutedStage(stage, stage[0].conv1.in_channels, num_units, side))

    def forward(self, x, assignment):
        """[B, 3, H, W] and [S, B] int64 -> logits [B, K]."""
        if not self.routed:
            return super().forward(x)
        x = self.stem(x)
        for name, unit in zip(self._stages(), assignment, strict=True):
            x = getattr(self, name)(x, unit)
        return self.head(x)

    @staticmethod
    def _stages() -> list[str]:
        return [f"layer{i + 1}" for i in range(STAGES)]


class Step:
    """The training step of a network on a fixed batch of noise; a call does one step.

    Args:
      side: see ``Network``.
      size: H and W of the images.
      width: see ``Network``.
      batch: B.
      num_units: N.
      dtype: "bfloat16" (by autocast) or "float32".
      device: "cuda" or "cpu".

    Attributes:
      network: the ``Network``.
    """

    def __init__(self, side: str, size: int, width: int, batch: int, num_units: int, dtype: str, device: str):
        torch.manual_seed(0)
        self.network = Network(side, width, num_units, 200).to(device, memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(self.network.parameters(), 1e-4, momentum=0.9, fused=True)
        self._images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
        self._images = self._images.contiguous(memory_format=torch.channels_last)
        self._label = torch.randint(0, 200, (batch,), device=device)
        units = [torch.tensor(load_assignment("random", batch, num_units, seed)).long() for seed in range(STAGES)]
        self._assignment = torch.stack(units).to(device)
        self._context = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def __call__(self) -> None:
        """One step."""
        with self._context:
            logits = self.network(self._images.float() / 64 - 2, self._assignment)
            loss = F.cross_entropy(logits.float(), self._label)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
