"""Small building blocks that cells, stem and decoder share.

Shape shorthand in this room: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

NormFactory = Callable[[int], nn.Module]
"""Makes a normalisation layer for a number of channels."""


def conv_norm(
    in_channels: int,
    out_channels: int,
    norm: NormFactory,
    *,
    kernel_size: int = 1,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution without bias, normalisation and, if ``relu``, ReLU.

    ``padding`` keeps the size (at stride 1) unless given.
    """
    if padding is None:
        padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    layers: list[nn.Module] = [conv, norm(out_channels)]
    if relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def depthwise(channels: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """3×3 depthwise convolution without bias; the size is kept at stride 1."""
    return nn.Conv2d(
        channels,
        channels,
        3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=channels,
        bias=False,
    )


def initialise(module: nn.Module) -> None:
    """Kaiming initialisation (fan in) of every convolution below ``module``, biases at 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
