"""Gates: how likely each expert is for a sample, and which experts that makes run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class Gater(nn.Module):
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


def select(probabilities: Tensor, top_k: int, threshold: float = 0.0) -> Tensor:
    """Experts that run: the K most probable, without those below τ (DynK-Hydra, Algorithm 1).

    Eq. 6 as printed compares the projection with τ; Algorithm 1 and the text compare the gater's
    probability, as is done here. The most probable expert always runs: with τ above its
    probability nothing would, and there would be no prediction.

    Args:
        probabilities: (N, E), the gater's softmax.
        top_k: K.
        threshold: τ; 0 is the fixed K of HydraRes.

    Returns:
        (N, E) bool.

    Raises:
        ConfigError: see :func:`check_selection`.
    """
    check_selection(top_k, threshold, probabilities.shape[1])
    values, index = probabilities.detach().topk(top_k, dim=1)
    keep = values >= threshold
    keep[:, 0] = True
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, index, keep)


def check_selection(top_k: int, threshold: float, experts: int) -> None:
    """See that K and τ suit the number of experts.

    Raises:
        ConfigError: K is not within 1 and E, or τ not within 0 and 1.
    """
    if not 1 <= top_k <= experts:
        raise ConfigError(f"TOP_K must be between 1 and the {experts} branches, not {top_k}")
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"the gater's threshold τ must be between 0 and 1, not {threshold}")
