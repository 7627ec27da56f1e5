"""The gate of a cell, made ready to run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..routing.gate import Gate
from .chain import Chain


class GatePlan:
    """Decides like a ``Gate``; pooling and what follows run in float32 at least.

    Args:
        gate: the gate of the network, in evaluation.
        dtype: precision of the maps.
    """

    def __init__(self, gate: Gate, dtype: torch.dtype) -> None:
        self._gate = gate
        self._reduce = Chain(gate.reduce, dtype)
        self._dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._weight = gate.predict.weight.detach().flatten(1).to(self._dtype)
        bias = gate.predict.bias
        self._bias = None if bias is None else bias.detach().to(self._dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → logits (n, transforms)."""
        x = self._reduce(self._shrunk(x) if self._gate.small else x)
        return F.linear(x.mean((2, 3), dtype=self._dtype), self._weight, self._bias)

    def _shrunk(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) >= 4:
            return F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False)
        size = self._gate.map_size(x.shape[-2], x.shape[-1])
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
