"""Multiply-adds of backbones, necks and other modules that run alike for every input.

The convention is that of ``divdr.routing.cost``: a convolution counts its multiplications, a
normalisation 2 per number, ReLU 1, pooling 1 per number read; sums and resizing count nothing.
Operators are counted as PyTorch runs them, on tensors without data, so that any module will do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .backbone import DynamicRouting

_aten = torch.ops.aten


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
    return _count(_without_data(module), (1, *shape))


def call_macs(module: nn.Module, argument: Any) -> float:
    """Multiply-adds of a module in evaluation for an argument of any structure, on "meta".

    Args:
        module: it is not changed.
        argument: of tensors without data, its batch of 1.
    """
    return module_macs(_Call(module, argument), (0,))


class _Call(nn.Module):
    """A module that has its argument already."""

    def __init__(self, module: nn.Module, argument: Any) -> None:
        super().__init__()
        self.module = module
        self.argument = argument

    def forward(self, x: Tensor) -> Any:
        return self.module(self.argument)


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
    neck = _without_data(backbone, {id(routed[0]): _Maps(routed[0])})
    try:
        return _count(neck, (1, 3, height, width))
    except RuntimeError:
        multiple = max(1, backbone.size_divisibility)
        padded = [math.ceil(length / multiple) * multiple for length in (height, width)]
        return _count(neck, (1, 3, *padded))


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


def _without_data(module: nn.Module, instead: dict[int, Any] | None = None) -> nn.Module:
    return copy.deepcopy(module, instead).to("meta").eval()


def _count(module: nn.Module, shape: tuple[int, ...]) -> float:
    counter = FlopCounterMode(display=False, custom_mapping=_EXTRA)
    with torch.no_grad(), counter:
        module(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 2


def _per_input(macs: float) -> Callable[..., float]:
    def count(shape: torch.Size, *args: Any, **kwargs: Any) -> float:
        return 2 * macs * math.prod(shape)

    return count


def _pooling(shape: torch.Size, kernel: list[int], *args: Any, out_shape: Any, **kwargs: Any):
    out = out_shape[0] if isinstance(out_shape[0], torch.Size | tuple | list) else out_shape
    return 2 * math.prod(out) * math.prod(kernel if len(kernel) == 2 else [*kernel, *kernel])


# PyTorch's counter knows convolutions and matrix products, and counts two operations a
# multiply-add; so do these.
_EXTRA = {
    _aten.native_batch_norm: _per_input(2),
    _aten._native_batch_norm_legit_no_training: _per_input(2),
    _aten.native_group_norm: _per_input(2),
    _aten.native_layer_norm: _per_input(2),
    _aten.relu: _per_input(1),
    _aten.relu_: _per_input(1),
    _aten.mean: _per_input(1),
    _aten._adaptive_avg_pool2d: _per_input(1),
    _aten.max_pool2d_with_indices: _pooling,
    _aten.avg_pool2d: _pooling,
}
