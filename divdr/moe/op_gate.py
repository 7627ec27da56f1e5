"""Gates that choose the operations of Dynamic Routing's cells for each image.

Beside the gates of the paths, which stay as they are: a second decision in every cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..routing.chosen_ops import OpChoice
from ..settings import OpGateSettings
from .gates import NoisyTopKGate, anneal_k


class OpGate(nn.Module):
    """Noisy top-k over the operations, by the mean of the cell's input over its pixels.

    Args:
        channels: C.
        ops: O.
        k: operations that run for an image.
        noise: see ``NoisyTopKGate``.
    """

    def __init__(
        self, channels: int, ops: int, k: int, noise: float = OpGateSettings.noise
    ) -> None:
        super().__init__()
        self.gate = NoisyTopKGate(channels, ops, k, noise)

    def forward(self, x: Tensor) -> OpChoice:
        """Decide for (n, C, H, W), in float32 whatever the precision of ``x``."""
        pooled = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        gating = self.gate(pooled)
        return OpChoice(gating.weights, gating.load)


class OpGates:
    """Makes the gates of a network's cells; k falls from layer to layer (k-annealing).

    Args:
        k_first: operations that run for an image in the first layer.
        k_last: in the last.
        noise: of the gates in training, see ``NoisyTopKGate``.

    Raises:
        ConfigError: by the cell that asks, if it has fewer operations.
    """

    def __init__(self, k_first: int, k_last: int, noise: float = OpGateSettings.noise) -> None:
        self.k_first = k_first
        self.k_last = k_last
        self.noise = noise

    @classmethod
    def of(cls, settings: OpGateSettings) -> OpGates | None:
        """As settings say; None where all operations are summed."""
        if settings.name == "sum":
            return None
        return cls(settings.k_first, settings.k_last, settings.noise)

    def __call__(self, channels: int, ops: int, layer: int, layers: int) -> OpGate:
        """The gate of a cell, see ``divdr.routing.chosen_ops.OpGateBuilder``."""
        for name in ("k_first", "k_last"):
            if getattr(self, name) > ops:
                raise ConfigError(
                    f"{OpGateSettings.KEY}.{name.upper()} is {getattr(self, name)}, but a cell has "
                    f"{ops} of MODEL.ROUTING.OPS"
                )
        k = anneal_k(self.k_first, self.k_last, layers)[layer]
        return OpGate(channels, ops, k, self.noise)
