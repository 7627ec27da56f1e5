"""The one private operation of PyTorch in use: oneDNN's convolution with ReLU and sum fused.

``torch.nn.functional.conv2d`` leaves oneDNN for a pointwise convolution of one image in one
thread, and runs ReLU as a pass of its own. Where the operation is missing or does not do what it
should, :func:`available` is False and the public path serves.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16)


def convolution(
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


def convolution_onto(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``total`` ← ReLU(``total`` + pointwise convolution of ``x``), in place.

    Only for maps where :func:`can_sum` holds.
    """
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        total, x, weight, bias, [0, 0], [1, 1], [1, 1], 1, "add", 1.0, "relu", [], ""
    )


def can_sum(total: Tensor, x: Tensor) -> bool:
    """Whether the fused sum takes these maps: it fails where it cannot tell channels last apart."""
    layout = torch.channels_last
    return (
        x.shape[1] > 1
        and x.shape[2] * x.shape[3] > 1
        and total.is_contiguous(memory_format=layout)
        and x.is_contiguous(memory_format=layout)
    )


def available(tensor: Tensor) -> bool:
    """Whether the fused operations serve a tensor's device and precision."""
    if tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        return False
    return torch.backends.mkldnn.is_available() and _works(tensor.dtype)


@cache
def _works(dtype: torch.dtype) -> bool:
    """Try both on small numbers that every precision holds exactly."""
    with torch.inference_mode(False), torch.no_grad():
        x = (torch.arange(48.0) % 5 - 2).view(1, 3, 4, 4).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = (torch.arange(9.0) % 4 - 1).view(3, 3, 1, 1).to(dtype)
        bias = torch.tensor([1.0, -2.0, 0.0]).to(dtype)
        wanted = F.conv2d(x.float(), weight.float(), bias.float())
        total = x.clone()
        try:
            one = convolution(x, weight, bias, [1, 1], [0, 0], [1, 1], 1, True)
            convolution_onto(total, x, weight, bias)
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            return False
        right = one.float().equal(wanted.relu())
        return right and total.float().equal((wanted + x.float()).relu())
