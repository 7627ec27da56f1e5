"""Gates: what gives every sample its logits over the experts."""

from __future__ import annotations

from torch import Tensor, nn


class PooledGate(nn.Module):
    """A trunk, global average pooling and a linear layer of one neuron an expert.

    Args:
        trunk: maps to maps; ``nn.Identity()`` for a gate that looks at the stem's.
        channels: of the trunk's maps.
        experts: number of experts.
    """

    def __init__(self, trunk: nn.Module, channels: int, experts: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.predict = nn.Linear(channels, experts)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, experts)."""
        return self.predict(self.trunk(maps).mean(dim=(2, 3)))
