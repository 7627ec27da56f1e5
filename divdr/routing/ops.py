"""Stem, operations, layers and drop path: what a cell is made of (Dynamic Routing's search space).

Every operation keeps channels and size. ``register_op`` adds one's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

NormFactory = Callable[[int], nn.Module]
"""Makes a normalisation layer for a number of channels."""


# oneDNN's kernel for the weights' gradient of a strided 1×1 convolution writes past its memory on
# CPUs without AVX-512, where maps with channels last have fewer channels than this.
_FEWEST_STRIDED = 8


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution that a CPU runs by oneDNN whatever the number of threads."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        weight, (rows, columns) = self.weight, self.stride
        if weight.device.type != "cpu":
            return super().forward(x)
        if max(rows, columns) > 1:
            if self.in_channels >= _FEWEST_STRIDED:
                return super().forward(x)
            x = x[:, :, ::rows, ::columns]
        # With one thread PyTorch takes a path half as fast for fewer than 16 images, unless the
        # kernel is dilated; a dilated 1×1 kernel is the same kernel.
        dilation = 2 if weight.dtype == torch.float32 else 1
        return F.conv2d(x, weight, self.bias, dilation=dilation)


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
    pointwise = kernel_size == groups == 1 and padding == 0
    kind = PointwiseConv2d if pointwise else nn.Conv2d
    conv = kind(
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
        # In the memory of the normalised map, which the backward pass does not look at.
        layers.append(nn.ReLU(inplace=True))
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


def initialise_fan_in(module: nn.Module) -> None:
    """Kaiming initialisation (fan in) of every convolution below ``module``, biases at 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


OpBuilder = Callable[[int, NormFactory], nn.Module]

_OPS: dict[str, OpBuilder] = {}


def register_op(name: str) -> Callable[[OpBuilder], OpBuilder]:
    """Decorator: makes a builder ``(channels, norm) -> module`` selectable by ``name``.

    The module maps (N, C, H, W) to (N, C, H, W). Its cost is counted from the layers that it
    holds (``divdr.routing.cost``), so it is best an ``nn.Sequential``.

    Raises:
        ConfigError: the name is taken.
    """

    def register(builder: OpBuilder) -> OpBuilder:
        if name in _OPS:
            raise ConfigError(f"an operation named {name!r} exists already")
        _OPS[name] = builder
        return builder

    return register


def op_names() -> list[str]:
    """Names of all operations."""
    return sorted(_OPS)


def build_op(name: str, channels: int, norm: NormFactory) -> nn.Module:
    """The operation ``name`` for maps of ``channels`` channels.

    Raises:
        ConfigError: no operation has this name.
    """
    if name not in _OPS:
        near = difflib.get_close_matches(name, op_names(), n=3)
        hint = f"nearest are {', '.join(near)}; " if near else ""
        raise ConfigError(f"unknown operation {name!r}; {hint}known are {', '.join(op_names())}")
    return _OPS[name](channels, norm)


@register_op("skip_connect")
def _skip_connect(channels: int, norm: NormFactory) -> nn.Module:
    return nn.Identity()


@register_op("sep_conv_3x3")
def _sep_conv(channels: int, norm: NormFactory) -> nn.Module:
    return nn.Sequential(
        depthwise(channels),
        conv_norm(channels, channels, norm),
        depthwise(channels),
        conv_norm(channels, channels, norm, relu=False),
    )


@register_op("dil_conv_3x3")
def _dil_conv(channels: int, norm: NormFactory) -> nn.Module:
    return nn.Sequential(
        depthwise(channels, dilation=2), conv_norm(channels, channels, norm, relu=False)
    )


def _pair(channels: int, norm: NormFactory, kernel: int) -> nn.Module:
    return nn.Sequential(
        conv_norm(channels, channels, norm, kernel_size=kernel),
        conv_norm(channels, channels, norm, kernel_size=kernel, relu=False),
    )


@register_op("conv_3x3")
def _conv(channels: int, norm: NormFactory) -> nn.Module:
    return _pair(channels, norm, 3)


@register_op("conv_5x5")
def _conv_5x5(channels: int, norm: NormFactory) -> nn.Module:
    return _pair(channels, norm, 5)


@register_op("conv_7x7")
def _conv_7x7(channels: int, norm: NormFactory) -> nn.Module:
    return _pair(channels, norm, 7)


@register_op("conv_1x7_7x1")
def _strips(channels: int, norm: NormFactory) -> nn.Module:
    layers: list[nn.Module] = []
    for kernel in ((1, 7), (7, 1)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        conv = nn.Conv2d(channels, channels, kernel, padding=padding, bias=False)
        layers += [conv, norm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


@register_op("bottleneck_3x3")
def _bottleneck(channels: int, norm: NormFactory) -> nn.Module:
    inner = max(1, channels // 4)
    return nn.Sequential(
        conv_norm(channels, inner, norm),
        conv_norm(inner, inner, norm, kernel_size=3),
        conv_norm(inner, channels, norm, relu=False),
    )


@register_op("mb_conv_3x3")
def _mb_conv(channels: int, norm: NormFactory) -> nn.Module:
    inner = 4 * channels
    return nn.Sequential(
        conv_norm(channels, inner, norm),
        conv_norm(inner, inner, norm, kernel_size=3, groups=inner),
        conv_norm(inner, channels, norm, relu=False),
    )


@register_op("avg_pool_3x3")
def _avg_pool(channels: int, norm: NormFactory) -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


@register_op("max_pool_3x3")
def _max_pool(channels: int, norm: NormFactory) -> nn.Module:
    return nn.MaxPool2d(3, stride=1, padding=1)


class SqueezeExcite(nn.Module):
    """Multiplies each channel by what two layers make of the means of all (Hu et al. 2017).

    Args:
        channels: C.
        reduction: the inner layer has C divided by this, at least 1.

    Attributes:
        inner: neurons of that layer.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.inner = max(1, channels // reduction)
        self.weigh = nn.Sequential(
            nn.Linear(channels, self.inner),
            nn.ReLU(),
            nn.Linear(self.inner, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x * self.weigh(x.mean(dim=(2, 3)))[:, :, None, None]


@register_op("squeeze_excite")
def _squeeze_excite(channels: int, norm: NormFactory) -> nn.Module:
    return SqueezeExcite(channels)


class Stem(nn.Module):
    """3×3 stride-2 convolution without padding, then two depthwise-separable ones.

    Args:
        in_channels: channels of the image.
        channels: channels of the result.
        norm: makes the normalisation layer.
        inner: channels of the first two blocks.
    """

    def __init__(self, in_channels: int, channels: int, norm: NormFactory, inner: int) -> None:
        super().__init__()
        self.first = conv_norm(in_channels, inner, norm, kernel_size=3, stride=2, padding=0)
        self.second = nn.Sequential(depthwise(inner), conv_norm(inner, inner, norm))
        self.third = nn.Sequential(depthwise(inner, stride=2), conv_norm(inner, channels, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) → maps (N, channels, ~H/4, ~W/4)."""
        return self.third(self.second(self.first(x)))


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zero each image's map with ``probability``; the others grow so that the mean stays.

    Args:
        x: (N, C, H, W).
        probability: in [0, 1).
    """
    # torchvision has it as stochastic_depth, but this room works where torch alone is installed.
    if probability <= 0.0:
        return x
    survive = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= probability
    return x * (survive.to(x.dtype) / (1.0 - probability))


class DropPathSchedule:
    """Probability that grows linearly with depth and with training progress.

    Attributes:
        maximum: probability of the last layer at the end of training.
        progress: share of training that is done, in [0, 1]; the trainer sets it.
    """

    def __init__(self, maximum: float) -> None:
        if not 0.0 <= maximum < 1.0:
            raise ConfigError(f"drop path probability must be in [0, 1), not {maximum}")
        self.maximum = maximum
        self.progress = 0.0

    def probability(self, layer: int, num_layers: int) -> float:
        """Probability for a layer (from 0) at the present progress."""
        return self.maximum * self.progress * (layer + 1) / num_layers
