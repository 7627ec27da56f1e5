"""A trained network, made ready to run fast.

Shape shorthand in this room: N images of a batch, n of them at a cell, C channels, H rows,
W columns, D = 3 × cells numbers of A(x).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from ..routing.stem import Stem
from .arrival import Arrival
from .cell_plan import CellPlan
from .chain import Chain
from .decision import Decision, all_open, from_logits
from .imposed import Imposed
from .journal import Costs, Journal
from .route import Route


class InferencePlan:
    """Runs a network in evaluation: the same results and record, in less time.

    Normalisation is folded into the convolutions, maps lie channels last, every cell runs once
    for the images that open it, and nothing runs for those that do not. It holds its own copy of
    the weights: after the network has changed, build another one.

    Args:
        network: the trained supernet, in evaluation; it is not changed.
        dtype: precision of weights and maps; None for the network's own. Gates pool and decide in
            float32 whatever it is.

    Raises:
        ConfigError: the network is in training, or ``dtype`` is no floating point type.
    """

    @torch.no_grad()
    @torch.inference_mode(False)
    def __init__(self, network: DynamicRoutingNetwork, *, dtype: torch.dtype | None = None) -> None:
        if network.training:
            raise ConfigError("a plan needs the network in evaluation: call network.eval() first")
        parameter = next(network.parameters())
        self.dtype = parameter.dtype if dtype is None else dtype
        if not self.dtype.is_floating_point:
            raise ConfigError(f"a plan computes in a floating point type, not {self.dtype}")
        self.device = parameter.device
        self.space = network.space
        self._network = network
        self._published = network.initial.reach == "published"
        stem = network.stem
        # The stem's children run in a row; another module in its place runs as it is.
        self._stem = Chain(
            nn.Sequential(*stem.children()) if type(stem) is Stem else stem, self.dtype
        )
        self._layers = [[CellPlan(network.initial, self.dtype)]]
        self._layers += [[] for _ in range(self.space.num_layers)]
        for cell in network.cells():
            self._layers[cell.node.layer + 1].append(CellPlan(cell, self.dtype))
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
            ValueError: the route has another shape, or the image is smaller than 3×3.
        """
        given = None if route is None else Imposed(route, self.space, x)
        if not len(x):
            return self._network(x)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            outputs, journal = self._run(x, given)
            size = (x.shape[-2], x.shape[-1])
            costs = self._costs.at(
                size,
                gates=given is None,
                initial_gate=given is None or not given.decides_initial,
            )
            dtype = x.dtype if x.is_floating_point() else self.dtype
            return [maps.to(dtype) for maps in outputs], journal.record(costs, size, x.device)

    def _run(self, x: Tensor, given: Imposed | None) -> tuple[list[Tensor], Journal]:
        everyone = list(range(len(x)))
        sizes = self.space.map_sizes(*x.shape[-2:])
        journal = Journal(len(x), self.space.num_cells)
        maps = self._stem(x.to(self.dtype, memory_format=torch.channels_last))
        like = maps.new_empty(0)
        arrivals = [Arrival(everyone, (maps.shape[1], *sizes[0]), like)]
        arrivals[0].add(maps if self._stem.owns_result else maps.clone(), everyone)
        del maps
        for number, cells in enumerate(self._layers):
            visited = [c for c, a in zip(cells, arrivals, strict=True) if a.images]
            members = [a.images for a in arrivals if a.images]
            inputs = [a.finish() for a in arrivals if a.images]
            decisions = _decide(visited, members, inputs, given)
            arrivals = [
                Arrival(images, (self._network.channels * 2**scale, *sizes[scale]), like)
                for scale, images in enumerate(self._reached(number, decisions, everyone))
            ]
            for cell, decision in zip(visited, decisions, strict=True):
                finer = sizes[cell.node.scale - 1] if cell.node.scale else None
                # Popped, so that the map is freed as soon as the cell is done with it.
                cell.run(inputs.pop(0), decision, arrivals, finer)
                journal.note(decision)
        return [arrival.finish() for arrival in arrivals], journal

    def _reached(
        self, number: int, decisions: list[Decision], everyone: list[int]
    ) -> list[list[int]]:
        """Images that reach each scale after layer ``number`` (0: the initial cell)."""
        if number == self.space.num_layers:
            return [everyone] * self.space.out_scales
        reached: list[set[int]] = [set() for _ in range(self.space.scales_per_layer[number])]
        for decision in decisions:
            for transform in decision.node.transforms:
                scale = decision.node.target_scale(transform)
                reached[scale].update(decision.leads(transform, self._published))
        return [sorted(images) for images in reached]


def _decide(
    cells: list[CellPlan], members: list[list[int]], inputs: list[Tensor], given: Imposed | None
) -> list[Decision]:
    """Decisions of the cells of one layer, with at most one wait for the device."""
    decisions: dict[int, Decision] = {}
    asked: list[int] = []
    for index, (cell, images) in enumerate(zip(cells, members, strict=True)):
        found = None if given is None else given.at(cell.node, images)
        if found is not None:
            decisions[index] = found
        elif cell.gate is None:
            decisions[index] = all_open(cell.node, images)
        else:
            asked.append(index)
    logits = [cells[i].gate(inputs[i]) for i in asked]  # type: ignore[misc]
    nodes = [cells[i].node for i in asked]
    answers = from_logits(nodes, [members[i] for i in asked], logits)
    decisions.update(zip(asked, answers, strict=True))
    return [decisions[index] for index in range(len(cells))]
