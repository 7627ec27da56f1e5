"""Experts of different architecture for a routing layer, by name.

Ramachandran & Le, Sections 4.1 and 4.2. Every one keeps the shape of its input. Each convolution is
followed by normalisation and ReLU. What is not here is taken from ``divdr.routing``'s operations.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from ..errors import ConfigError
from ..routing import build_op, op_names
from ..routing.ops import NormFactory, SqueezeExcite, conv_norm

_KERNELS = {"conv_3x3": 3, "conv_5x5": 5, "conv_7x7": 7}


def expert_names() -> list[str]:
    """Names that :func:`build_expert` knows."""
    return sorted({*op_names(), "linear"})


def build_expert(name: str, channels: int, norm: NormFactory, convolutions: int = 2) -> nn.Module:
    """An expert of a routing layer.

    Args:
        name: see :func:`expert_names`; "linear" is for vectors, all others for maps.
        channels: C, of input and output.
        norm: makes a normalisation layer; "linear" has LayerNorm.
        convolutions: how often "conv_3x3", "conv_5x5" and "conv_7x7" convolve. The paper prints
            pairs, 2, with which its network has 3.3 million numbers; the 1.8 million that it counts
            come with 1.

    Raises:
        ConfigError: no operation has this name; the nearest are named.
    """
    if name in _KERNELS:
        kernel = _KERNELS[name]
        layers = [
            conv_norm(channels, channels, norm, kernel_size=kernel) for _ in range(convolutions)
        ]
        return nn.Sequential(*layers)
    if name == "conv_1x7_7x1":
        return nn.Sequential(_strip(channels, norm, (1, 7)), _strip(channels, norm, (7, 1)))
    if name == "squeeze_excite":
        return SqueezeExcite(channels)
    if name == "linear":
        return linear_layer(channels, channels)
    if name in op_names():
        return build_op(name, channels, norm)
    near = difflib.get_close_matches(name, expert_names(), n=3) or expert_names()
    raise ConfigError(f"there is no expert operation {name!r}; nearest are {', '.join(near)}")


def linear_layer(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer, LayerNorm and ReLU (Section 4.1)."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())


def group_norm(groups: int) -> Callable[[int], nn.GroupNorm]:
    """Makes GroupNorm of so many groups.

    The maker raises ConfigError for channels that do not divide among them.
    """

    def make(channels: int) -> nn.GroupNorm:
        if channels % groups:
            raise ConfigError(
                f"{channels} channels do not divide among {groups} groups of GroupNorm"
            )
        return nn.GroupNorm(groups, channels)

    return make


def _strip(channels: int, norm: NormFactory, kernel: tuple[int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(channels, channels, kernel, padding=padding, bias=False)
    return nn.Sequential(conv, norm(channels), nn.ReLU())
