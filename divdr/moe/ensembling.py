"""One answer from several networks: the mean of their probabilities, or a linear layer on both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """(N, C, ...) logarithm of the mean of the networks' probabilities.

    Args:
        logits: of each network, (N, C, ...).
    """
    logs = torch.stack([F.log_softmax(each.float(), 1) for each in logits])
    return logs.logsumexp(0) - math.log(len(logs))


class Stacking(nn.Module):
    """A linear layer on the log-probabilities of two networks, side by side.

    "Revisiting single-gated Mixtures of Experts" leaves open what exactly it sees and how it
    starts. Here it starts as half of each, the geometric mean of the two answers.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * num_classes, num_classes)
        with torch.no_grad():
            half = torch.eye(num_classes) / 2
            self.linear.weight.copy_(torch.cat([half, half], dim=1))
            self.linear.bias.zero_()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits (N, C) of both to logits (N, C)."""
        logs = [F.log_softmax(each.float(), 1) for each in (first, second)]
        return self.linear(torch.cat(logs, dim=1))
