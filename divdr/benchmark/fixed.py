"""A given route, run again and again: what static experts are timed as."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..inference.imposed import Imposed
from ..inference.plan import InferencePlan
from ..inference.route import Route
from ..routing.record import Routing

Result = tuple[list[Tensor], Routing]


def fixed_route(plan: InferencePlan, x: Tensor, record: Routing) -> Callable[[], Result]:
    """A call that runs images along the routes of a record, without deciding.

    One image on CUDA is captured as a graph, see ``CapturedRoute``. Several images, each with its
    own route, go through the plan, whose initial cell then decides for itself.

    Args:
        plan: of the network.
        x: (N, in_channels, H, W).
        record: of these images.
    """
    if len(x) > 1:
        return lambda: plan(x, record.activations)
    route = Route.of(plan.space, record)
    return CapturedRoute(plan, x, route) if x.is_cuda else lambda: plan(x, route)


class CapturedRoute:
    """One route as a CUDA graph on a static input.

    Captured are the cast to the plan's precision and layout, the stem, every cell of the route and
    the sums between them. Not captured, because it is the host's: the routing record, which is
    the same at every replay and made once. The gates' values are copied to the device before.

    Args:
        plan: a plan on a CUDA device.
        x: (N, in_channels, H, W) on that device; its numbers are copied.
        route: the route of all images.

    Attributes:
        input: the static input; copy other images of the same size into it.
    """

    def __init__(self, plan: InferencePlan, x: Tensor, route: Route) -> None:
        self.input = x.clone()
        _, self._record = plan(self.input, route)
        imposed = Imposed(route, plan.space, self.input)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # workspaces and algorithms are chosen before capture
            for _ in range(3):
                plan.maps(self.input, imposed)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._maps = plan.maps(self.input, imposed)

    def __call__(self) -> Result:
        """Maps, overwritten by the next call, and the record."""
        self._graph.replay()
        return self._maps, self._record
