"""The gate of a cell, made ready to run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..routing.gate import Gate
from .chain import Chain
from .folding import is_plain_convolution, leaves


class GatePlan:
    """Decides like a ``Gate``; pooling and what follows run in float32 at least.

    Args:
        gate: the gate of the network, in evaluation.
        dtype: precision of the maps.
    """

    def __init__(self, gate: Gate, dtype: torch.dtype) -> None:
        self._gate = gate
        # The mean of four numbers becomes their sum, and the quarter goes into the weights.
        self._summed = gate.small and is_plain_convolution(next(leaves(gate.reduce)))
        self._reduce = Chain(gate.reduce, dtype)
        self._reduce_sum = Chain(gate.reduce, dtype, 0.25) if self._summed else self._reduce
        self._dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._weight = gate.predict.weight.detach().flatten(1).to(self._dtype)
        bias = gate.predict.bias
        self._bias = None if bias is None else bias.detach().to(self._dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → logits (n, transforms)."""
        height, width = x.shape[-2:]
        if self._summed and min(height, width) >= 4:
            x = self._reduce_sum(_sum_of_four(x))
        else:
            x = self._reduce(self._shrunk(x) if self._gate.small else x)
        return F.linear(x.mean((2, 3), dtype=self._dtype), self._weight, self._bias)

    def _shrunk(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) >= 4:
            return F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False)
        size = self._gate.map_size(x.shape[-2], x.shape[-1])
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _sum_of_four(x: Tensor) -> Tensor:
    """Four times the bilinear ×1/4: its samples lie in the middle of rows 4i + 1 and 4i + 2."""
    rows, columns = x.shape[-2] // 4 * 4, x.shape[-1] // 4 * 4
    x = x[..., :rows, :columns]
    total = x[..., 1::4, 1::4] + x[..., 1::4, 2::4]
    total += x[..., 2::4, 1::4]
    total += x[..., 2::4, 2::4]
    return total
