"""The DenseNet of DynK-Hydra in its parts: two blocks are the stem, the third is each branch's.

Section 4: blocks of 3, 6 and 12 layers, growth 3, each `d` times as long. The paper gives no more;
bottlenecks of four times the growth and transitions that halve the channels (DenseNet-BC) come
nearest to the sizes of its Table 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..routing import BatchNorm
from .resnet import Part, convolution, scaled


class DenseLayer(nn.Module):
    """BN, ReLU, 1×1 to 4 · growth, BN, ReLU, 3×3 to growth channels, which join the input's C."""

    def __init__(self, in_channels: int, growth: int, *, separable: bool = False) -> None:
        super().__init__()
        width = 4 * growth
        self.body = nn.Sequential(
            BatchNorm(in_channels),
            nn.ReLU(),
            convolution(in_channels, width, 1),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            convolution(width, growth, separable=separable),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([x, self.body(x)], dim=1)


@dataclass(frozen=True)
class DenseNetParts:
    """Makes stems, branches and trunks of gaters.

    Args:
        depth: d, multiplies the layers of every block.
        growth: channels that a layer adds.
        layers: of the three blocks at d = 1.
        in_channels: of the images.
        stem_width: multiplies the growth in the stem.
        branch_width: in a branch.
        gater_width: in the gater.
        separable: depthwise-separable convolutions but for the first.
    """

    depth: int = 1
    growth: int = 3
    layers: Sequence[int] = (3, 6, 12)
    in_channels: int = 3
    stem_width: float = 1.0
    branch_width: float = 1.0
    gater_width: float = 1.0
    separable: bool = False

    def stem(self) -> Part:
        """Images to maps of a quarter of their size."""
        growth = scaled(self.growth, self.stem_width)
        channels = 2 * growth
        parts: list[nn.Module] = [convolution(self.in_channels, channels)]
        for length in self.layers[:2]:
            block, channels = self._block(channels, growth, length)
            half = max(1, channels // 2)
            parts += [*block, BatchNorm(channels), nn.ReLU(inplace=True)]
            parts += [convolution(channels, half, 1), nn.AvgPool2d(2)]
            channels = half
        return Part(*parts, out_channels=channels)

    def branch(self, in_channels: int) -> Part:
        """The third block: maps keep their size."""
        return self._last(in_channels, self.branch_width)

    def gater_trunk(self, in_channels: int) -> Part:
        """The third block for the gater."""
        return self._last(in_channels, self.gater_width)

    def _last(self, in_channels: int, width: float) -> Part:
        growth = scaled(self.growth, width)
        block, channels = self._block(in_channels, growth, self.layers[2])
        return Part(*block, BatchNorm(channels), nn.ReLU(inplace=True), out_channels=channels)

    def _block(self, channels: int, growth: int, length: int) -> tuple[list[nn.Module], int]:
        block: list[nn.Module] = []
        for _ in range(length * self.depth):
            block.append(DenseLayer(channels, growth, separable=self.separable))
            channels += growth
        return block, channels
