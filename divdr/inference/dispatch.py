"""Static experts behind a dispatcher: the first layers decide which one runs the rest.

DivDR finds local experts; here each is a static sub-network (``StaticNetwork``) of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from ..routing.space import TRANSFORMS, RoutingSpace
from ..settings import ClusteringSettings
from .decision import ImposedRoute
from .recorder import Costs, RoutingRecorder
from .stages import Stages, result_dtype
from .static_network import StaticNetwork


@dataclass(frozen=True, eq=False)
class Dispatcher:
    """A linear classifier of the first layers' gates.

    The nearest centre, seen in these gates alone, is right less often: experts may differ most in
    gates that come later.

    Attributes:
        layers: how many layers it looks at.
        weight: (K, P), float64 on the host; P is T × the cells of these layers.
        bias: (K,), likewise; -inf for an expert without images.
    """

    layers: int
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(
        cls, space: RoutingSpace, values: Tensor, expert: Tensor, num_experts: int, layers: int
    ) -> Dispatcher:
        """Learn from images whose experts are known (logistic regression).

        Args:
            space: the routing space.
            values: (M, D) what was clustered of M images: gates, or their logits.
            expert: (M,) ids of their experts.
            num_experts: K.
            layers: how many layers to look at.

        Raises:
            ConfigError: ``layers`` is below 1, or leaves the experts no layer.
        """
        if not 1 <= layers < space.num_layers:
            raise ConfigError(
                f"a dispatcher looks at 1 to {space.num_layers - 1} of the {space.num_layers} "
                f"layers, not {layers}"
            )
        seen = len(TRANSFORMS) * sum(space.scales_per_layer[:layers])
        weight = np.zeros((num_experts, seen))
        bias = np.full(num_experts, -np.inf)
        x, labels = values[:, :seen].double().cpu().numpy(), expert.cpu().numpy()
        present = np.unique(labels)
        bias[present] = 0.0
        if len(present) > 1:
            # Imported here as it takes a second, and few processes fit a dispatcher.
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
            fitted.fit(x, labels)
            scaler, model = (step for _, step in fitted.steps)
            slope, shift = model.coef_ / scaler.scale_, model.intercept_
            shift = shift - slope @ scaler.mean_
            if len(present) == 2:  # one row separates the second from the first
                slope, shift = np.vstack([-slope, slope]) / 2, np.hstack([-shift, shift]) / 2
            weight[present], bias[present] = slope, shift
        return cls(layers, torch.from_numpy(weight), torch.from_numpy(bias))

    @property
    def num_experts(self) -> int:
        """K."""
        return len(self.bias)

    def pick(self, values: Tensor) -> Tensor:
        """Ids (N,) of experts by values (N, P) or (N, D) of the images, on the host."""
        seen = values[:, : self.weight.shape[1]].detach().double().cpu()
        return (seen @ self.weight.T + self.bias).argmax(dim=1)

    def check(self, space: RoutingSpace, num_experts: int) -> None:
        """See whether it was made for a routing space and a number of experts.

        Raises:
            ConfigError: it was not.
        """
        seen = len(TRANSFORMS) * sum(space.scales_per_layer[: self.layers])
        if tuple(self.weight.shape) != (num_experts, seen):
            raise ConfigError(
                f"the dispatcher is for {self.weight.shape[0]} experts and {self.weight.shape[1]} "
                f"gates, here are {num_experts} and {seen}"
            )


def check_dispatched(network: DynamicRoutingNetwork) -> None:
    """See whether gates of a network's first layers can tell the expert of an image.

    Raises:
        ConfigError: there are none, as one early look decides.
    """
    if network.early is not None:
        raise ConfigError(
            "static experts are dispatched by gates of the first layers, which a network with "
            'MODEL.ROUTING.GATE "early" has not'
        )


class DispatchPlan:
    """Runs the first layers as the network does, then the rest of each image's expert.

    Args:
        network: the trained supernet, in evaluation; it is not changed.
        experts: the static sub-networks, in evaluation; their first layers are not used.
        dispatcher: picks an expert by the gates of the first layers.
        gates: what the dispatcher looks at: gates "after" their non-linearity or "before" it.
        dtype: precision of weights and maps; None for the network's own.

    Raises:
        ConfigError: a network is in training or decides early, or the experts or the dispatcher
            belong to others.
    """

    @torch.no_grad()
    @torch.inference_mode(False)
    def __init__(
        self,
        network: DynamicRoutingNetwork,
        experts: Sequence[StaticNetwork],
        dispatcher: Dispatcher,
        *,
        gates: str = ClusteringSettings.gates,
        dtype: torch.dtype | None = None,
    ) -> None:
        if network.training or any(expert.training for expert in experts):
            raise ConfigError("a plan needs the networks in evaluation: call eval() first")
        check_dispatched(network)
        if any(expert.space != network.space for expert in experts):
            raise ConfigError("the experts belong to another routing space than the network")
        dispatcher.check(network.space, len(experts))
        self.space = network.space
        self.dtype = next(network.parameters()).dtype if dtype is None else dtype
        self._dispatcher = dispatcher
        self._before = gates == "before"
        self._routes = [expert.route for expert in experts]
        self._trunk = Stages(network, self.dtype)
        self._experts = [Stages(expert, self.dtype) for expert in experts]
        self._costs = Costs(network)

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Routing]:
        """Run every image.

        Args:
            x: (N, in_channels, H, W), normalised, on the device of the networks.

        Returns:
            Maps and record as ``InferencePlan`` gives them; the real cost counts the gates of the
            first layers alone.
        """
        size = (x.shape[-2], x.shape[-1])
        recorder = RoutingRecorder(len(x), self.space.num_cells, self.dtype, self._trunk.ops)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            given = [ImposedRoute(route, self.space, x) for route in self._routes]
            results = [
                result
                for images in self._trunk.parts(x)
                for result in self._run(x, images, given, recorder)
            ]
            costs = self._costs.at(size, gated_layers=self._dispatcher.layers, initial_gate=True)
            return self._joined(results, x), recorder.record(costs, size, x.device)

    def _run(
        self, x: Tensor, images: list[int], given: list[ImposedRoute], recorder: RoutingRecorder
    ) -> list[tuple[list[int], list[Tensor]]]:
        """Maps of some images, neighbours, for the images of each expert."""
        size, first = (x.shape[-2], x.shape[-1]), self._dispatcher.layers + 1
        trunk = self._trunk
        input_sums = trunk.run(
            trunk.start(x, images), trunk.numbers[:first], images, size, None, recorder
        )
        results = []
        for number, members in self._choose(recorder, images):
            expert = self._experts[number]
            here = [input_sum.part(members) for input_sum in input_sums]
            maps = expert.run(here, expert.numbers[first:], members, size, given[number], recorder)
            results.append((members, [input_sum.finish() for input_sum in maps]))
        return results

    def _choose(self, recorder: RoutingRecorder, images: list[int]) -> list[tuple[int, list[int]]]:
        """Experts that are wanted, each with its images."""
        values = recorder.logits() if self._before else recorder.gates()
        chosen = self._dispatcher.pick(values.flatten(1)).tolist()
        wanted = sorted({chosen[i] for i in images})
        return [(k, [i for i in images if chosen[i] == k]) for k in wanted]

    def _joined(self, parts: list[tuple[list[int], list[Tensor]]], x: Tensor) -> list[Tensor]:
        dtype = result_dtype(x, self.dtype)
        if len(parts) == 1:
            return [maps.to(dtype) for maps in parts[0][1]]
        sizes = self.space.map_sizes(x.shape[-2], x.shape[-1])
        whole = []
        for scale in range(self.space.out_scales):
            shape = (len(x), self._trunk.channels * 2**scale, *sizes[scale])
            whole.append(torch.empty(shape, dtype=dtype, device=x.device))
            for images, maps in parts:
                whole[scale][images] = maps[scale].to(dtype)
        return whole
