"""The stem: three convolution blocks that bring the image to stride 4."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import NormFactory, conv_norm, depthwise


class Stem(nn.Module):
    """3×3 stride-2 convolution without padding, then two depthwise-separable ones.

    Args:
        in_channels: channels of the image.
        channels: channels of the result.
        norm: makes the normalisation layer.
        inner: channels of the first two blocks.
    """

    def __init__(self, in_channels: int, channels: int, norm: NormFactory, inner: int = 64) -> None:
        super().__init__()
        self.first = conv_norm(in_channels, inner, norm, kernel_size=3, stride=2, padding=0)
        self.second = nn.Sequential(depthwise(inner), conv_norm(inner, inner, norm))
        self.third = nn.Sequential(depthwise(inner, stride=2), conv_norm(inner, channels, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) → maps (N, channels, ~H/4, ~W/4)."""
        return self.third(self.second(self.first(x)))
