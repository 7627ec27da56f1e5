"""The soft conditional gate: which transforms of a cell an image opens, and how far.

Li et al. (CVPR 2020), Section 3.2, Eq. 3 and 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings import RoutingSettings
from .ops import NormFactory, conv_norm

GATE_KINDS = RoutingSettings.choices("gate")


class Gate(nn.Module):
    """1×1 convolution C → C/2, norm, ReLU, average over the map, 1×1 convolution to the gates.

    Args:
        channels: C of the cell's input.
        transforms: number of gates.
        norm: makes the normalisation layer.
        small: shrink the input ×1/4 (bilinear) first, which cuts the gate's cost by 16.
        bias: start value of the last bias, in logits; 1.5 opens every gate to 0.9.
    """

    def __init__(
        self, channels: int, transforms: int, norm: NormFactory, *, small: bool, bias: float
    ) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.small = small
        self.initial_bias = bias
        self.reduce = conv_norm(channels, inner, norm)
        self.pool = _MeanPool(1)
        self.predict = nn.Conv2d(inner, transforms, 1)

    def reset_bias(self) -> None:
        """Set the last bias to its start value."""
        nn.init.constant_(self.predict.bias, self.initial_bias)  # type: ignore[arg-type]

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the map the gate looks at for a cell input of this size."""
        if not self.small:
            return height, width
        return max(1, height // 4), max(1, width // 4)

    def shrunk(self, x: Tensor) -> Tensor:
        """The map the gate looks at, (N, C, H', W'), of the cell's input (N, C, H, W)."""
        if not self.small:
            return x
        if min(x.shape[-2:]) >= 4:
            # By factor: by size, sides that 4 does not divide would be sampled at other places.
            return F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False)
        size = self.map_size(*x.shape[-2:])
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, transforms), fp32 whatever the precision of ``x``."""
        x = self.reduce(self.shrunk(x))
        # A decision near the threshold must not hang on half precision.
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            return self.predict(self.pool(x)).flatten(1)


class _MeanPool(nn.AdaptiveAvgPool2d):
    """The mean over the map, whose gradient has the layout of maps with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, 1, 1)."""
        return x.permute(0, 2, 3, 1).mean(dim=(1, 2))[:, :, None, None]


def open_gates(logits: Tensor) -> Tensor:
    """Gate values ReLU(tanh(logits)) in [0, 1)."""
    return torch.relu(torch.tanh(logits))
