"""A trained network, made ready to run fast."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routing.gate import open_gates
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from .decision import ImposedRoute
from .recorder import Costs, RoutingRecorder
from .route import Route
from .route_tree import RouteTree
from .specialised import SpecialisedPlan
from .stages import Stages, joined, result_dtype
from .static_network import StaticNetwork


class InferencePlan:
    """Runs a network in evaluation: the same results and record, in less time.

    Normalisation is folded into the convolutions, maps lie channels last, every cell runs once
    for the images that open it, and nothing runs for those that do not. It holds its own copy of
    the weights: after the network has changed, build another one. Where images choose the
    operations of cells, each of these runs for the images that chose it, and the host waits for
    the device once more a cell.

    Args:
        network: the trained supernet, in evaluation, or a static sub-network of it, whose route is
            then taken; it is not changed.
        dtype: precision of weights and maps; None for the network's own. Gates pool and decide in
            float32 whatever it is.

    Raises:
        ConfigError: the network is in training, or ``dtype`` is no floating point type.
    """

    @torch.no_grad()
    @torch.inference_mode(False)
    def __init__(
        self,
        network: DynamicRoutingNetwork | StaticNetwork,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if network.training:
            raise ConfigError("a plan needs the network in evaluation: call network.eval() first")
        parameter = next(network.parameters())
        self.dtype = parameter.dtype if dtype is None else dtype
        if not self.dtype.is_floating_point:
            raise ConfigError(f"a plan computes in a floating point type, not {self.dtype}")
        self.device = parameter.device
        self.space = network.space
        self._fixed = network.route if isinstance(network, StaticNetwork) else None
        self._network = network
        self._early = copy.deepcopy(network.early)
        self._stages = Stages(network, self.dtype)
        self._costs = Costs(network)

    def __call__(
        self, x: Tensor, route: Tensor | Route | None = None
    ) -> tuple[list[Tensor], Routing]:
        """Run every image along its route.

        Args:
            x: (N, in_channels, H, W), normalised, on the device of the plan.
            route: gate values to follow, (N, D), or (1, D) or (D,) for all images. The gates then
                do not run: ``logits`` of the record are 0 and its real cost counts no gates. The
                initial cell decides for itself, unless a ``Route`` is given, which has its gates.

        Returns:
            The maps of the last layer, stride 4 first, each (N, C·2^s, H_s, W_s) in the precision
            of ``x``, channels last; a map that no path of an image leads to is zero for that
            image. And the routing record. There is no graph.

        Raises:
            ValueError: the route has another shape or the plan its own, or the image is smaller
                than 3×3.
        """
        if self._fixed is not None:
            if route is not None:
                raise ValueError("a static sub-network has its own route and takes no other")
            route = self._fixed
        found = self.unless_changed(x, route, lambda: True)
        assert found is not None
        return found

    def unless_changed(
        self, x: Tensor, route: Tensor | Route | None, current: Callable[[], bool]
    ) -> tuple[list[Tensor], Routing] | None:
        """What a call returns; None where ``current`` says no.

        On a GPU it is asked when the stem is on its way, which runs while the host finds out.
        """
        if self.device.type == "cpu" and not current():
            return None
        size = (x.shape[-2], x.shape[-1])
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            looked = None  # (N, D) logits
            if self._early is not None and route is None:
                looked = self._early(x.to(self._early.predict.weight.dtype))
                route = open_gates(looked)
            given = None if route is None else ImposedRoute(route, self.space, x)
            result = self._run(x, given, current)
            if result is None:
                return None
            outputs, recorder = result
            costs = self._costs.along(size, given if looked is None else None)
            dtype = result_dtype(x, self.dtype)
            record = recorder.record(costs, size, x.device)
            if looked is not None:
                record = record.with_logits(looked)
            return [maps.to(dtype) for maps in outputs], record

    def maps(self, x: Tensor, given: ImposedRoute) -> list[Tensor]:
        """The maps alone, along a route prepared before, in the plan's precision.

        With a route that has the initial cell's gates the host waits for nothing here and copies
        nothing to the device, so that a CUDA graph can capture it, unless operations are chosen by
        image.

        Args:
            x: (N, in_channels, H, W), normalised, on the device of the plan.
            given: the route, prepared for these N images.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            result = self._run(x, given, lambda: True)
            assert result is not None
            return result[0]

    def specialise(self, batches: Iterable[Tensor]) -> SpecialisedPlan:
        """A plan that expects the routes of calibration images, with the same results.

        Args:
            batches: of images (N, in_channels, H, W), normalised, on the device of the plan.

        Raises:
            ConfigError: it is the plan of a static sub-network, whose route is known, or of a
                network whose images choose operations, or that has changed to training.
        """
        if isinstance(self._network, StaticNetwork):
            raise ConfigError("the plan of a static sub-network has but one route: nothing to gain")
        tree = RouteTree(self.space)
        for x in batches:
            tree.add(self(x)[1])
        return SpecialisedPlan(self._network, tree, dtype=self.dtype)

    def _run(
        self, x: Tensor, given: ImposedRoute | None, current: Callable[[], bool]
    ) -> tuple[list[Tensor], RoutingRecorder] | None:
        size = (x.shape[-2], x.shape[-1])
        recorder = RoutingRecorder(len(x), self.space.num_cells, self.dtype, self._stages.ops)
        stages = self._stages
        parts: list[list[Tensor]] = []
        for images in stages.parts(x):
            input_sums = stages.start(x, images)
            if self.device.type != "cpu" and not parts and not current():
                return None
            input_sums = stages.run(input_sums, stages.numbers, images, size, given, recorder)
            parts.append([input_sum.finish() for input_sum in input_sums])
        return joined(parts), recorder
