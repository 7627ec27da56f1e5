"""A plan that takes the routes of a calibration set for granted, and sees whether it was right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from .captured import CapturedCall
from .decision import AssumedDecision, CellDecision, ImposedRoute
from .input_sum import InPlaceInputSum
from .recorder import Costs, RoutingRecorder
from .route import Route
from .route_tree import Branch, RouteTree, StageDecision, Walk
from .stages import Stages, joined, result_dtype

MOST_GRAPHS = 8
"""Captured routes, each with memory of its own."""
_FREQUENT = 2  # times that a route has come before it is captured
_MOST_SEEN = 1000


class SpecialisedPlan:
    """Gives what an ``InferencePlan`` gives, for images whose routes are mostly known.

    - Where all calibration images that came the same way decided alike, decisions are assumed and
      not waited for: gates run, as maps are weighted by their values, and the host asks for all of
      them at once at the end. It waits once, and once more at every layer where routes part.
      An image that decided something else is run again without assumptions.
    - From the last parting on a route is captured as a CUDA graph, the most frequent ones first;
      the decisions before it choose the graph.
    - With ``reach="published"``, cells that no map comes to run once and not for every batch.
    - On a CPU weights are packed for each size of maps, as the convolutions read them.

    Args:
        network: the trained supernet, in evaluation, of the routes; it is not changed.
        tree: routes of calibration images.
        dtype: precision of weights and maps; None for the network's own.
        capture: how work is captured; None: as CUDA graphs, on CUDA alone.

    Attributes:
        space: the routing space.
        runs_again: images so far whose routes had not been expected.

    Raises:
        ConfigError: the network is in training, its images choose operations, or its gates are
            "early".
    """

    @torch.no_grad()
    @torch.inference_mode(False)
    def __init__(
        self,
        network: DynamicRoutingNetwork,
        tree: RouteTree,
        *,
        dtype: torch.dtype | None = None,
        capture: type[CapturedCall] | None = None,
    ) -> None:
        if network.training:
            raise ConfigError("a plan needs the network in evaluation: call network.eval() first")
        if network.early is not None:
            raise ConfigError(
                'a network whose routes one early look decides (MODEL.ROUTING.GATE "early") knows '
                "them before it begins: there is nothing to specialise"
            )
        self.dtype = next(network.parameters()).dtype if dtype is None else dtype
        self.space = network.space
        self._stages = Stages(network, self.dtype, specialised=True)
        if self._stages.ops:
            raise ConfigError("a network whose images choose operations cannot be specialised")
        self._costs = Costs(network)
        self._root = tree.root()
        self._capture = capture
        self._graphs: dict[Any, _Captured] = {}
        self._seen: Counter[Any] = Counter()
        self.runs_again = 0

    def __call__(
        self, x: Tensor, route: Tensor | Route | None = None
    ) -> tuple[list[Tensor], Routing]:
        """Run every image along its route; as ``InferencePlan`` does.

        Args:
            x: (N, in_channels, H, W), normalised, on the device of the network.
            route: gate values to follow; nothing is then assumed.
        """
        found = self.unless_changed(x, route, lambda: True)
        assert found is not None
        return found

    def unless_changed(
        self, x: Tensor, route: Tensor | Route | None, current: Callable[[], bool]
    ) -> tuple[list[Tensor], Routing] | None:
        """What a call returns; None where ``current`` says no.

        On a GPU it is asked when all that is expected is on its way.
        """
        if (x.device.type == "cpu" or route is not None) and not current():
            return None
        given = None if route is None else ImposedRoute(route, self.space, x)
        size = (x.shape[-2], x.shape[-1])
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            recorder = RoutingRecorder(len(x), self.space.num_cells, self.dtype)
            if given is None:
                parts = [self._expect(x, images, recorder) for images in self._stages.parts(x)]
                if x.device.type != "cpu" and not current():
                    return None
                self._run_again(x, parts, recorder)
            else:
                each = self._stages.parts(x)
                parts = [self._follow(x, images, given, recorder) for images in each]
            costs = self._costs.along(size, given)
            dtype = result_dtype(x, self.dtype)
            return [maps.to(dtype) for maps in joined(parts)], recorder.record(
                costs, size, x.device
            )

    def _follow(
        self, x: Tensor, images: list[int], given: ImposedRoute | None, recorder: RoutingRecorder
    ) -> list[Tensor]:
        """Maps of some images along a given route, or along their own without assumptions."""
        stages, size = self._stages, (x.shape[-2], x.shape[-1])
        sums = stages.start(x, images)
        sums = stages.run(sums, stages.numbers, images, size, given, recorder)
        return [each.finish() for each in sums]

    def _expect(self, x: Tensor, images: list[int], recorder: RoutingRecorder) -> list[Tensor]:
        """Maps of some images, neighbours, by what is expected of them."""
        stages, size = self._stages, (x.shape[-2], x.shape[-1])
        walk = Walk(self._root, images)
        found = self._replayed(x, images, walk, recorder)
        if found is None:
            sums = stages.start(x, images)
            for number in stages.numbers:
                sums = stages.run(sums, [number], images, size, None, recorder, walk)
                found = self._replayed(sums, images, walk, recorder, number + 1, size)
                if found is not None:
                    break
            else:
                found = [each.finish() for each in sums]
        return found

    def _run_again(self, x: Tensor, parts: list[list[Tensor]], recorder: RoutingRecorder) -> None:
        """Put right the maps of images that decided something else than was assumed."""
        wrong = recorder.settle()
        self.runs_again += len(wrong)
        recorder.forget(wrong)
        for images, maps in zip(self._stages.parts(x), parts, strict=True):
            again = [image for image in images if image in wrong]
            if not again:
                continue
            for whole, own in zip(maps, self._follow(x, again, None, recorder), strict=True):
                for image, one in zip(again, own, strict=True):
                    whole[image - images[0]].copy_(one)

    def _replayed(
        self,
        source: Tensor | list[InPlaceInputSum],
        images: list[int],
        walk: Walk,
        recorder: RoutingRecorder,
        start: int = 0,
        size: tuple[int, int] | None = None,
    ) -> list[Tensor] | None:
        """What a captured route makes of images or input sums; the recorder gets its decisions.

        None where the rest of the route is not certain, is not captured, or ends here.
        """
        like = source if isinstance(source, Tensor) else source[0].like
        if self._capture is None and like.device.type != "cuda":
            return None
        line = walk.line()
        if not line or images != list(range(len(images))):
            return None
        size = (like.shape[-2], like.shape[-1]) if size is None else size
        key = (line, start, size, len(images), like.dtype)
        if key not in self._graphs:
            if len(self._seen) >= _MOST_SEEN:  # ever new sizes
                self._seen.clear()
            self._seen[key] += 1
            if self._seen[key] < _FREQUENT or len(self._graphs) >= MOST_GRAPHS:
                return None
            capture = self._capture or CapturedCall
            self._graphs[key] = _Captured(self._stages, line, start, size, source, images, capture)
        graph = self._graphs[key]
        maps, numbers = graph(source)
        for decision in graph.decisions.known:
            recorder.note(decision)
        recorder.expect(graph.decisions.assumed, numbers)
        return maps


class _Decisions:
    """Collects the decisions of a captured route, as a recorder does."""

    def __init__(self) -> None:
        self.known: list[CellDecision] = []  # of cells that no map comes to
        self.assumed: list[AssumedDecision] = []

    def note(self, decision: CellDecision, op_weights: Tensor | None = None) -> None:
        if isinstance(decision, AssumedDecision):
            self.assumed.append(decision)
        else:
            self.known.append(decision)


class _Captured:
    """The stages of one route from some stage on, captured.

    Attributes:
        decisions: made on the way, the same at every replay but for what is assumed.

    Args:
        stages: of the network.
        line: what is decided in each of them.
        start: number of the first; 0 begins with the stem.
        size: (height, width) of the network's input in pixels.
        source: images, or the input sums of the first stage.
        images: which of a batch, all.
        capture: how.
    """

    def __init__(
        self,
        stages: Stages,
        line: Sequence[StageDecision],
        start: int,
        size: tuple[int, int],
        source: Tensor | list[InPlaceInputSum],
        images: list[int],
        capture: type[CapturedCall],
    ) -> None:
        self._stages, self._line, self._start = stages, line, start
        self._size, self._images = size, images
        self.decisions = _Decisions()
        self._call = capture(self._run, self._inputs(source))

    def __call__(self, source: Tensor | list[InPlaceInputSum]) -> tuple[list[Tensor], Tensor]:
        """Maps, and (2, …) logits and gates of the decisions that it assumes; all new memory."""
        *maps, numbers = self._call(self._inputs(source))
        return [each.clone() for each in maps], numbers

    def _inputs(self, source: Tensor | list[InPlaceInputSum]) -> list[Tensor]:
        if isinstance(source, Tensor):
            return [source]
        return [each.peek() for each in source if each.images]

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        stages, images = self._stages, self._images
        if self._start == 0:
            sums = stages.start(inputs[0], images)
        else:
            sums = stages.arrived(inputs, self._start, self._line[0], self._size, images)
        self.decisions = found = _Decisions()
        walk = Walk(Branch.of(self._line), images)
        rest = stages.numbers[self._start :]
        sums = stages.run(sums, rest, images, self._size, None, found, walk)
        maps = [each.finish() for each in sums]
        numbers = [decision.numbers for decision in found.assumed]
        # Without gates there are none.
        return [*maps, torch.cat(numbers, dim=1) if numbers else maps[0].new_zeros(2, 0)]
