"""Networks in their parts: the ResNet of DynK-Hydra, its DenseNet, and their layers.

Section 4 of the paper; widths and FLOPs are those of He et al.'s networks for CIFAR (16, 32 and 64
channels, `d` blocks of two 3×3 convolutions a stage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..routing import BatchNorm
from ..settings import mixtures


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    separable: bool = False,
) -> nn.Module:
    """A convolution without bias that keeps the size but for its stride.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: 1 or odd.
        stride: of the rows and columns.
        separable: a depthwise convolution and a 1×1 one instead (DynK-Hydra on CUB-200).
    """
    padding = kernel // 2
    if not separable or kernel == 1:
        return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, in_channels, kernel, stride, padding, groups=in_channels, bias=False
        ),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
    )


def scaled(channels: int, width: float) -> int:
    """Channels times a width multiplier, rounded, and at least one."""
    return max(1, round(channels * width))


class Part(nn.Sequential):
    """A stem, a branch or the trunk of a gater: layers one after the other.

    Args:
        layers: the layers.
        out_channels: channels of the map that they return.
    """

    def __init__(self, *layers: nn.Module, out_channels: int) -> None:
        super().__init__(*layers)
        self.out_channels = out_channels


def initialise(module: nn.Module) -> None:
    """Kaiming's start values for convolutions; everything else keeps PyTorch's."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters.

    Where the size changes, the shortcut takes every second pixel and fills up with zero channels
    (He et al.'s option A, which the published FLOPs agree with). Narrow branches can have fewer
    channels than the stem; their shortcut is a 1×1 convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, separable: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(in_channels, out_channels, stride=stride, separable=separable),
            BatchNorm(out_channels),
            nn.ReLU(inplace=True),
            convolution(out_channels, out_channels, separable=separable),
            BatchNorm(out_channels),
        )
        self.activation = nn.ReLU()
        self.stride = stride
        self.extra = out_channels - in_channels
        self.project: nn.Module | None = None
        if self.extra < 0:
            self.project = nn.Sequential(
                convolution(in_channels, out_channels, 1, stride), BatchNorm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        if self.project is not None:
            shortcut = self.project(x)
        else:
            shortcut = x[..., :: self.stride, :: self.stride]
            if self.extra:
                shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.extra))
        return self.activation(self.body(x) + shortcut)


@dataclass(frozen=True)
class ResNetParts:
    """Makes stems, branches and trunks of gaters.

    Args:
        depth: d, blocks a stage.
        channels: of the first stage; each later one has twice as many.
        in_channels: of the images.
        stem_width: ws, multiplies the stem's channels.
        branch_width: wb, a branch's.
        gater_width: wg, the gater's.
        separable: depthwise-separable convolutions but for the first, which sees the image.
        entry: "small" starts with a 3×3 convolution, for images of about 32 × 32 pixels; "large"
            with a 7×7 one of stride 2 and max pooling, for 224 × 224.
    """

    depth: int = mixtures.ClassifierSettings.depth
    channels: int = mixtures.ClassifierSettings.channels
    in_channels: int = 3
    stem_width: float = mixtures.ClassifierSettings.stem_width
    branch_width: float = mixtures.ClassifierSettings.branch_width
    gater_width: float = mixtures.ClassifierSettings.gater_width
    separable: bool = mixtures.ClassifierSettings.separable
    entry: str = mixtures.ClassifierSettings.entry

    def stem(self) -> Part:
        """Images to maps of half their size ("large": an eighth)."""
        first = scaled(self.channels, self.stem_width)
        second = scaled(2 * self.channels, self.stem_width)
        large = self.entry == "large"
        layers: list[nn.Module] = [
            convolution(self.in_channels, first, 7 if large else 3, 2 if large else 1),
            BatchNorm(first),
            nn.ReLU(inplace=True),
        ]
        if large:
            layers.append(nn.MaxPool2d(3, 2, 1))
        layers += self._stage(first, first, 1)
        layers += self._stage(first, second, 2)
        return Part(*layers, out_channels=second)

    def branch(self, in_channels: int) -> Part:
        """The third stage: maps of the stem to maps of half their size."""
        out = scaled(4 * self.channels, self.branch_width)
        return Part(*self._stage(in_channels, out, 2), out_channels=out)

    def gater_trunk(self, in_channels: int) -> Part:
        """The third stage for the gater."""
        out = scaled(4 * self.channels, self.gater_width)
        return Part(*self._stage(in_channels, out, 2), out_channels=out)

    def _stage(self, in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
        return [
            BasicBlock(
                out_channels if index else in_channels,
                out_channels,
                1 if index else stride,
                separable=self.separable,
            )
            for index in range(self.depth)
        ]


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

    The paper does not describe it in full. What it prints in Table 2 is nearest with as many
    channels at the start as a layer adds, and a transition (1 × 1, half the channels) behind each
    of the three blocks: twenty extra heads make up the 0.05 to 0.20 · 10⁶ numbers by which
    DynK-Hydra is larger than Hydra-Dense, which tells how many channels a branch ends in.

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
        channels = growth
        parts: list[nn.Module] = [convolution(self.in_channels, channels)]
        for length in self.layers[:2]:
            block, channels = self._block(channels, growth, length)
            # Pooling first gives the same for a quarter of the multiply-adds.
            parts += [*block, *_transition(channels, nn.AvgPool2d(2))]
            channels = _halved(channels)
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
        return Part(*block, *_transition(channels), out_channels=_halved(channels))

    def _block(self, channels: int, growth: int, length: int) -> tuple[list[nn.Module], int]:
        block: list[nn.Module] = []
        for _ in range(length * self.depth):
            block.append(DenseLayer(channels, growth, separable=self.separable))
            channels += growth
        return block, channels


def _halved(channels: int) -> int:
    return max(1, channels // 2)


def _transition(channels: int, *pooling: nn.Module) -> list[nn.Module]:
    """From a dense block's maps to half as many."""
    layers = [BatchNorm(channels), nn.ReLU(inplace=True), *pooling]
    return [*layers, convolution(channels, _halved(channels), 1)]
