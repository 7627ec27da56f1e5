"""Stem and layers of a network, made ready to run from any layer on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..routing.network import DynamicRoutingNetwork
from ..routing.stem import Stem
from .arrival import Arrival, rows_of
from .cell_plan import CellPlan
from .chain import Chain
from .decision import Decision, all_open, from_logits
from .imposed import Imposed
from .journal import Journal
from .static_network import StaticNetwork

# Images run side by side on a CPU while their maps of stride 4 fit in this: more would leave the
# caches and be slower than fewer images at a time, fewer would pay for every call anew.
_CPU_BYTES = 4 * 2**20


class Stages:
    """The parts that images run through: stage 0 is the initial cell, stage l + 1 is layer l.

    Args:
        network: the network, in evaluation.
        dtype: precision of weights and maps.

    Attributes:
        space: the routing space.
        channels: channels at stride 4.
        numbers: of all stages.
    """

    def __init__(self, network: DynamicRoutingNetwork | StaticNetwork, dtype: torch.dtype) -> None:
        self.space = network.space
        self.numbers = range(self.space.num_layers + 1)
        self.dtype = dtype
        self.channels = network.channels
        self._published = network.initial.reach == "published"
        stem = network.stem
        # The stem's children run in a row; another module in its place runs as it is.
        self._stem = Chain(nn.Sequential(*stem.children()) if type(stem) is Stem else stem, dtype)
        self._cells: list[list[CellPlan]] = [[] for _ in range(self.space.num_layers + 1)]
        for cell in (network.initial, *network.cells()):
            self._cells[cell.node.layer + 1].append(CellPlan(cell, dtype))

    def parts(self, x: Tensor) -> list[list[int]]:
        """Neighbouring images of x (N, in_channels, H, W) that best run side by side."""
        together = max(1, len(x))
        if x.device.type == "cpu":
            rows, columns = self.space.map_sizes(*x.shape[-2:])[0]
            each = self.channels * rows * columns * self.dtype.itemsize
            together = max(1, min(together, _CPU_BYTES // each))
        starts = range(0, max(1, len(x)), together)
        return [list(range(start, min(start + together, len(x)))) for start in starts]

    def start(self, x: Tensor, images: list[int]) -> list[Arrival]:
        """Run the stem.

        Args:
            x: (N, in_channels, H, W).
            images: which of them, neighbours.

        Returns:
            What arrives at stage 0.
        """
        size = self.space.map_sizes(*x.shape[-2:])[0]
        if not images:
            return [Arrival([], (self.channels, *size), x.new_empty(0, dtype=self.dtype))]
        maps = self._stem(rows_of(x, images).to(self.dtype, memory_format=torch.channels_last))
        arrival = Arrival(images, (maps.shape[1], *size), maps.new_empty(0))
        arrival.add(maps if self._stem.owns_result else maps.clone(), images)
        return [arrival]

    def run(
        self,
        arrivals: list[Arrival],
        stages: Iterable[int],
        images: list[int],
        size: tuple[int, int],
        given: Imposed | None,
        journal: Journal,
    ) -> list[Arrival]:
        """Run stages one after the other.

        Args:
            arrivals: what arrives at the first of them, by scale; it is used up.
            stages: their numbers, rising without gaps.
            images: all images that run, rising.
            size: (height, width) of the network's input in pixels.
            given: a route to follow; None lets the gates decide.
            journal: takes the decisions.

        Returns:
            What arrives at the stage after them; after the last one all images arrive everywhere.
        """
        sizes = self.space.map_sizes(*size)
        like = arrivals[0].like
        for number in stages:
            visited = [c for c, a in zip(self._cells[number], arrivals, strict=True) if a.images]
            members = [a.images for a in arrivals if a.images]
            inputs = [a.finish() for a in arrivals if a.images]
            decisions = _decide(visited, members, inputs, given)
            arrivals = [
                Arrival(images, (self.channels * 2**scale, *sizes[scale]), like)
                for scale, images in enumerate(self._reached(number, decisions, images))
            ]
            for cell, decision in zip(visited, decisions, strict=True):
                finer = sizes[cell.node.scale - 1] if cell.node.scale else None
                # Popped, so that the map is freed as soon as the cell is done with it.
                cell.run(inputs.pop(0), decision, arrivals, finer)
                journal.note(decision)
        return arrivals

    def _reached(
        self, number: int, decisions: list[Decision], everyone: list[int]
    ) -> list[list[int]]:
        """Images that reach each scale after a stage."""
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
