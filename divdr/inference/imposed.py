"""A route given from outside, ready for a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..routing.space import TRANSFORMS, Node, RoutingSpace
from .decision import Decision, rows_of
from .route import Route


class Imposed:
    """Gate values of N images, fetched once.

    Args:
        route: (N, D), or (1, D), (D,) or a ``Route`` for all images.
        space: the routing space.
        x: (N, C, H, W), the images.

    Attributes:
        decides_initial: whether it holds the gates of the initial cell as well.

    Raises:
        ValueError: the route has another shape.
    """

    def __init__(self, route: Tensor | Route, space: RoutingSpace, x: Tensor) -> None:
        count, size = len(x), space.activation_size
        self.decides_initial = isinstance(route, Route)
        self._initial = torch.zeros(1, len(TRANSFORMS))
        if isinstance(route, Route):
            self._initial, route = route.initial[None], route.activations
        if tuple(route.shape) not in {(size,), (1, size), (count, size)}:
            raise ValueError(
                f"a route for {count} images is ({count}, {size}), (1, {size}) or ({size},) here, "
                f"not {tuple(route.shape)}"
            )
        table = route.detach().view(-1, space.num_cells, len(TRANSFORMS))
        table = torch.cat([self._initial.to(table).expand(len(table), 1, -1), table], dim=1)
        self._device = table.to(x.device).expand(count, -1, -1)
        self._host = table.expand(count, -1, -1).tolist()

    def at(self, node: Node, images: list[int]) -> Decision | None:
        """The decision of a cell for its images; None where its gate decides."""
        if node.index < 0 and not self.decides_initial:
            return None
        place = node.index + 1
        gates = [self._host[image][place] for image in images]
        table = rows_of(self._device[:, place], images)
        columns = {t: table[:, t] for t in node.transforms}
        nothing = [[0.0] * len(TRANSFORMS)] * len(images)
        return Decision(node, images, gates, nothing, columns, table.dtype)
