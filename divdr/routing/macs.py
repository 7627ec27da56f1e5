"""Multiply-adds of plain layers, counted from their shapes.

The convention is the published one: a convolution counts its multiplications, a normalisation 2
per number (1 without its affine part), ReLU 1, pooling 1 per number read; copies, sums of maps and
bilinear resizing count nothing.
"""

from __future__ import annotations

from torch import nn

MapShape = tuple[int, int, int]
"""(C, H, W) of one image's map."""


def count_macs(
    module: nn.Module, shape: MapShape, *, affine_norm: bool = True
) -> tuple[float, MapShape]:
    """Multiply-adds of a module of plain layers and the shape of what it returns.

    Args:
        module: a layer, or containers of layers that run one after the other.
        shape: (C, H, W) of its input.
        affine_norm: count a normalisation's scale and shift (2 per number in all) or not (1).

    Raises:
        TypeError: the module holds a kind of layer whose cost is unknown.
    """
    channels, height, width = shape
    size = channels * height * width
    if isinstance(module, nn.Conv2d):
        out = _window_shape(module, shape, module.out_channels)
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return out[0] * out[1] * out[2] * kernel * channels / module.groups, out
    if isinstance(module, nn.Identity):
        return 0.0, shape
    if isinstance(module, nn.ReLU):
        return float(size), shape
    if "Norm" in type(module).__name__:
        return float(size * (2 if affine_norm else 1)), shape
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        out = _window_shape(module, shape, channels)
        rows, columns = _pair(module.kernel_size)
        return float(out[0] * out[1] * out[2] * rows * columns), out
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return float(size), (channels, 1, 1)
    children = list(module.children())
    if not children:
        raise TypeError(f"the cost of a {type(module).__name__} layer is not known")
    total = 0.0
    for child in children:
        macs, shape = count_macs(child, shape, affine_norm=affine_norm)
        total += macs
    return total, shape


def _window_shape(layer: nn.Module, shape: MapShape, channels: int) -> MapShape:
    kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
    padding, dilation = _pair(layer.padding), _pair(getattr(layer, "dilation", 1))
    rows, columns = (
        (length + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate(shape[1:])
    )
    return channels, rows, columns


def _pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
