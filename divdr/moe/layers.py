"""Convolutions that all parts are made of; shapes are (N, C, H, W)."""

from __future__ import annotations

from torch import nn


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
