"""Multiply-adds of backbones, necks and other modules that run alike for every input.

The convention is that of ``divdr.routing.cost``, "all" of ``divdr.moe.multiply_adds``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from ..moe.multiply_adds import count_macs, part_macs, without_data
from .backbone import DynamicRouting


def backbone_macs(backbone: nn.Module, height: int, width: int, channels: int = 3) -> float:
    """Multiply-adds of a backbone (neck included) for one image of this size.

    For routed backbones use the routing record: what runs depends on the image.

    Args:
        backbone: any module from images (N, C, H, W) to maps.
        height: rows of the image.
        width: columns of the image.
        channels: of the image.
    """
    return module_macs(backbone, (channels, height, width))


def module_macs(module: nn.Module, shape: Sequence[int]) -> float:
    """Multiply-adds of any module in evaluation for one input.

    Args:
        module: of one tensor; it is not changed.
        shape: of the input, without the batch.
    """
    return part_macs(module, shape, "all")[0]


def neck_macs(backbone: Backbone, height: int, width: int) -> float:
    """Multiply-adds of what a backbone runs after its ``DynamicRouting``, for one image.

    A neck that adds maps of two levels (FPN) can run on aligned maps alone. If those of this size
    are not, the count is at the size to which models pad such an image.

    Args:
        backbone: a neck over ``DynamicRouting``; a bare ``DynamicRouting`` costs 0.
        height: rows of the image.
        width: columns of the image.
    """
    if isinstance(backbone, DynamicRouting):
        return 0.0
    routed = [m for m in backbone.modules() if isinstance(m, DynamicRouting)]
    if len(routed) != 1:
        raise ValueError(f"the backbone holds {len(routed)} DynamicRouting; one is needed")
    neck = without_data(backbone, {id(routed[0]): _Maps(routed[0])})
    try:
        return count_macs(neck, (1, 3, height, width), "all")[0]
    except RuntimeError:
        multiple = max(1, backbone.size_divisibility)
        padded = [math.ceil(length / multiple) * multiple for length in (height, width)]
        return count_macs(neck, (1, 3, *padded), "all")[0]


class _Maps(Backbone):
    """Stands for a routed backbone: maps of the right shapes, at no cost."""

    def __init__(self, routed: DynamicRouting) -> None:
        super().__init__()
        self._shapes = routed.output_shape()
        self._space = routed.space

    @property
    def size_divisibility(self) -> int:
        return self._space.max_stride

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        sizes = self._space.map_sizes(*x.shape[-2:])
        return {
            name: x.new_empty((len(x), shape.channels or 0, *sizes[scale]))
            for scale, (name, shape) in enumerate(self._shapes.items())
        }
