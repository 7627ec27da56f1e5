"""One static route for the images of each local expert, by majority vote.

The centre of a cluster is no such route: a mean of gates is hardly ever exactly 0, so that nearly
every cell would run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routing.space import TRANSFORMS, RoutingSpace
from .route import Route


def vote(space: RoutingSpace, activations: Tensor, initial: Tensor, threshold: float) -> Route:
    """The route that a cluster's images agree on.

    A gate is open where more than a share ``threshold`` of the images open it, at the mean of
    their values; cells that no open path leads to are then closed.

    Args:
        space: the routing space.
        activations: (M, D) gate activations of the cluster's M images.
        initial: (M, 3) gates of the initial cell.
        threshold: share of the images in [0, 1).

    Raises:
        ConfigError: there are no images, or the threshold is out of its range.
    """
    if not 0.0 <= threshold < 1.0:
        raise ConfigError(f"the threshold of a vote is a share in [0, 1), not {threshold}")
    if not len(activations):
        raise ConfigError("a cluster without images has no route to vote for")
    gates = activations.detach().cpu().view(len(activations), space.num_cells, len(TRANSFORMS))
    route = Route(space, _agreed(gates, threshold), _agreed(initial.detach().cpu(), threshold))
    reached = route.reached[:, None]
    return Route(space, torch.where(reached, route.gates, 0.0), route.initial)


def _agreed(values: Tensor, threshold: float) -> Tensor:
    """Mean over the rows that are above 0, where more than ``threshold`` of them are; else 0."""
    opened = values > 0
    share = opened.double().mean(dim=0)
    mean = values.double().sum(dim=0) / opened.sum(dim=0).clamp(min=1)
    return torch.where(share > threshold, mean, 0.0).float()
