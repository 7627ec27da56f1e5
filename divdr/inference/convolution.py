"""A convolution made ready to run: folded, in one precision, channels last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import onednn
from .folding import fold


class Convolution:
    """A folded convolution, with ReLU after it if asked.

    Args:
        conv: the convolution of the network.
        norm: the normalisation after it, or None.
        relu: apply ReLU to the result.
        dtype: precision of weights and maps.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None,
        relu: bool,
        dtype: torch.dtype,
    ) -> None:
        weight, bias = fold(conv, norm)
        self.relu = relu
        self._weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self._bias = None if bias is None else bias.to(dtype)
        assert not isinstance(conv.padding, str)
        self._stride, self._padding = list(conv.stride), list(conv.padding)
        self._dilation, self._groups = list(conv.dilation), conv.groups
        self._fused = onednn.available(self._weight)
        pointwise = conv.kernel_size == (1, 1) and self._stride == [1, 1] and self._groups == 1
        # In fp32 the fused sum gains nothing over a sum of its own, in bf16 it does.
        self._sums = (
            self._fused and pointwise and self._padding == [0, 0] and dtype == torch.bfloat16
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W'), memory of its own."""
        options = (self._stride, self._padding, self._dilation, self._groups)
        if self._fused:
            return onednn.convolution(x, self._weight, self._bias, *options, self.relu)
        y = F.conv2d(x, self._weight, self._bias, *options)
        return y.relu_() if self.relu else y

    def onto(self, total: Tensor, x: Tensor) -> Tensor:
        """ReLU(``total`` + convolution of ``x``), in the memory of ``total``."""
        if self._sums and onednn.can_sum(total, x):
            return onednn.convolution_onto(total, x, self._weight, self._bias)
        return total.add_(self(x)).relu_()
