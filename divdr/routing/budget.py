"""The budget loss: pushes the expected cost to a share of the all-open cost."""

from __future__ import annotations

from torch import Tensor

from .record import Routing


def budget_loss(routing: Routing, target: float) -> Tensor:
    """(expected cost / cost with all gates open − target)² of each image (DR, Eq. 9).

    Args:
        routing: record of N images.
        target: μ, the share aimed at.

    Returns:
        (N,) losses.
    """
    return (routing.expected_cost / routing.full_cost - target) ** 2
