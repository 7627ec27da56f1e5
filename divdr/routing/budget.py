"""The budget loss: pushes the expected cost to a share of the all-open cost."""

from __future__ import annotations

from torch import Tensor

from ..errors import ConfigError
from .record import Routing


def budget_loss(routing: Routing, target: float, per: str = "image") -> Tensor:
    """(expected cost / cost with all gates open − target)² (DR, Eq. 9; DivDR, Eq. 3).

    DivDR's equation has it for every image, Dynamic Routing's code squares what the images of a
    process cost on average. They are the same with one image a process. With more, the mean over
    images is larger by the variance of their costs: it also works against routes of different cost.

    Args:
        routing: record of N images.
        target: μ, the share aimed at.
        per: "image" or "batch".

    Returns:
        (N,) losses of images, or (1,) that of their mean cost.

    Raises:
        ConfigError: ``per`` is neither.
    """
    check_per(per)
    share = routing.expected_cost / routing.full_cost
    if per == "batch":
        share = share.mean(dim=0, keepdim=True)
    return (share - target) ** 2


def check_per(per: str) -> None:
    """See that ``per`` is something :func:`budget_loss` knows.

    Raises:
        ConfigError: it is not.
    """
    if per not in ("image", "batch"):
        raise ConfigError(f'MODEL.ROUTING.BUDGET.PER must be "image" or "batch", not {per!r}')
