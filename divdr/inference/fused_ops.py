"""oneDNN's fused convolutions on a CPU, as PyTorch's compiler calls them, where they are there."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    relu: bool,
) -> Tensor:
    """``conv2d`` and, if ``relu``, ReLU: (N, C, H, W) → (N, C', H', W')."""
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, dilation, groups, "relu" if relu else "none", [], ""
    )


def fused_onto(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``total`` ← ReLU(``total`` + pointwise convolution of ``x``), in place.

    Only for maps where :func:`can_sum_onto` holds.
    """
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        total, x, weight, bias, [0, 0], [1, 1], [1, 1], 1, "add", 1.0, "relu", [], ""
    )


def packed_weight(
    weight: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    size: list[int],
) -> Tensor:
    """A weight (O, I, kH, kW) in oneDNN's order for maps of a size (N, C, H, W)."""
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, dilation, groups, size
    )


def packing_available(weight: Tensor) -> bool:
    """Whether this PyTorch packs weights and takes them packed."""
    return hasattr(torch.ops.mkldnn, "_reorder_convolution_weight") and _packs(weight.dtype)


def _small(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A map and a pointwise weight of whole numbers that every precision holds exactly."""
    x = (torch.arange(48.0) % 5 - 2).view(1, 3, 4, 4).to(dtype)
    weight = (torch.arange(9.0) % 4 - 1).view(3, 3, 1, 1).to(dtype)
    return x.contiguous(memory_format=torch.channels_last), weight


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Try it on small numbers."""
    with torch.inference_mode(False), torch.no_grad():
        x, weight = _small(dtype)
        options = ([0, 0], [1, 1], [1, 1], 1)
        try:
            own = packed_weight(weight, *options, [1, 3, 4, 4])
            found = fused(x, own, None, [1, 1], [0, 0], [1, 1], 1, False)
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            return False
        return found.float().equal(F.conv2d(x.float(), weight.float()))


def can_sum_onto(total: Tensor, x: Tensor) -> bool:
    """Whether the fused sum takes these maps: it fails where it cannot tell channels last apart."""
    layout = torch.channels_last
    return (
        x.shape[1] > 1
        and x.shape[2] * x.shape[3] > 1
        and total.is_contiguous(memory_format=layout)
        and x.is_contiguous(memory_format=layout)
    )


def fusing_available(tensor: Tensor) -> bool:
    """Whether the fused operations serve a tensor's device and precision."""
    if tensor.device.type != "cpu" or tensor.dtype not in _FUSED_DTYPES:
        return False
    return torch.backends.mkldnn.is_available() and _works(tensor.dtype)


@cache
def _works(dtype: torch.dtype) -> bool:
    """Try both on small numbers."""
    with torch.inference_mode(False), torch.no_grad():
        x, weight = _small(dtype)
        bias = torch.tensor([1.0, -2.0, 0.0]).to(dtype)
        wanted = F.conv2d(x.float(), weight.float(), bias.float())
        total = x.clone()
        try:
            one = fused(x, weight, bias, [1, 1], [0, 0], [1, 1], 1, True)
            fused_onto(total, x, weight, bias)
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            return False
        right = one.float().equal(wanted.relu())
        return right and total.float().equal((wanted + x.float()).relu())
