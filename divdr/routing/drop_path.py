"""Scheduled drop path: whole operations are skipped at random while training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zero each image's map with ``probability``; the others grow so that the mean stays.

    Args:
        x: (N, C, H, W).
        probability: in [0, 1).
    """
    if probability <= 0.0:
        return x
    survive = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= probability
    return x * (survive.to(x.dtype) / (1.0 - probability))


class DropPathSchedule:
    """Probability that grows linearly with depth and with training progress.

    Attributes:
        maximum: probability of the last layer at the end of training.
        progress: share of training that is done, in [0, 1]; whoever trains sets it.
    """

    def __init__(self, maximum: float) -> None:
        if not 0.0 <= maximum < 1.0:
            raise ConfigError(f"drop path probability must be in [0, 1), not {maximum}")
        self.maximum = maximum
        self.progress = 0.0

    def probability(self, layer: int, num_layers: int) -> float:
        """Probability for a layer (from 0) at the present progress."""
        return self.maximum * self.progress * (layer + 1) / num_layers
