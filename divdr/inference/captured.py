"""Work of a plan as a CUDA graph: the host asks for all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..routing.record import Routing
from .decision import ImposedRoute
from .route import Route

if TYPE_CHECKING:
    from .plan import InferencePlan

Work = Callable[[list[Tensor]], list[Tensor]]
"""Tensors to tensors on one device. The host waits for nothing in it, and copies nothing there."""

_WARM_UP = 3


class CapturedCall:
    """A function of tensors, captured on static inputs; the only class that knows CUDA graphs.

    Not run on a GPU so far. Everything but :meth:`_capture` and :meth:`_replay` is checked on a CPU
    by a stand-in that has others.

    Args:
        work: what to capture; it may overwrite its inputs.
        inputs: of the shapes, types and device of all that will come; their numbers are copied.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor]) -> None:
        self._inputs = [each.clone() for each in inputs]
        self._outputs: list[Tensor] = []
        # Workspaces and algorithms are chosen, and what is made once is made, before the capture.
        for _ in range(_WARM_UP):
            self._fill(inputs)
            self._aside(work)
        self._fill(inputs)
        self._capture(work)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs, in memory that the next call overwrites."""
        self._fill(inputs)
        self._replay()
        return self._outputs

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)

    def _aside(self, work: Work) -> None:
        """Run on another stream than the default one, which cannot be captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, work: Work) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = work(self._inputs)

    def _replay(self) -> None:
        self._graph.replay()


class CapturedRoute:
    """A fixed route as a CUDA graph.

    Captured are the cast to the plan's precision and layout, the stem, every cell of the route and
    the sums between them. Not captured, because it is the host's: the routing record, which is
    the same for all images and made once. The gates' values are copied to the device before.

    Args:
        plan: a plan on a CUDA device.
        x: (N, in_channels, H, W) on that device.
        route: the route of all images.
        capture: how work is captured.
    """

    def __init__(
        self,
        plan: InferencePlan,
        x: Tensor,
        route: Route,
        capture: type[CapturedCall] = CapturedCall,
    ) -> None:
        _, self._record = plan(x, route)
        imposed = ImposedRoute(route, plan.space, x)
        self._call = capture(lambda inputs: plan.maps(inputs[0], imposed), [x])

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Routing]:
        """Maps of images of the same number and size, overwritten by the next call; the record."""
        return self._call([x]), self._record
