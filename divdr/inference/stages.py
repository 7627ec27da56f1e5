"""Stem and layers of a network, made ready to run from any layer on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ..routing.cost import SIZES_KEPT, CostTensors, cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.ops import Stem
from ..routing.record import Routing
from ..routing.space import TRANSFORMS
from ..routing.transfer import to_device
from .cell_plan import CellPlan
from .convolution import Chain
from .decision import (
    CellDecision,
    ImposedRoute,
    InPlaceInputSum,
    Rows,
    all_open,
    from_logits,
    rows_of,
)
from .static_network import StaticNetwork

# Images run side by side on a CPU while their maps of stride 4 fit in this: more would leave the
# caches and be slower than fewer images at a time, fewer would pay for every call anew.
_CPU_BYTES = 4 * 2**20

_BLANK = [0.0] * len(TRANSFORMS)


class Costs:
    """Cost tables of a network by input size, on the host."""

    def __init__(self, network: DynamicRoutingNetwork | StaticNetwork) -> None:
        # A static sub-network has all parts that are counted.
        self._network = cast(DynamicRoutingNetwork, network)
        self._known: dict[tuple[int, int, int, bool], CostTensors] = {}

    def at(self, size: tuple[int, int], *, gated_layers: int, initial_gate: bool) -> CostTensors:
        """The table for an input (height, width) where gates run in the first layers alone."""
        key = (*size, gated_layers, initial_gate)
        if key not in self._known:
            if len(self._known) >= SIZES_KEPT:
                self._known.clear()
            table = cost_table(self._network, *size)
            gated = sum(self._network.space.scales_per_layer[:gated_layers])
            self._known[key] = table.without_gates(gated, initial_gate).tensors("cpu")
        return self._known[key]


class RoutingRecorder:
    """Collects the cells' decisions for N images until they make the record.

    Args:
        count: N.
        cells: reported cells of the network.
        dtype: precision of the maps.
        ops: O, operations of a cell where they are chosen by image, else 0.
    """

    def __init__(self, count: int, cells: int, dtype: torch.dtype, ops: int = 0) -> None:
        self._ops = ops
        self._chosen: list[tuple[int, list[int], Tensor]] = []
        self._cells = cells
        self._gates = [[_BLANK] * cells for _ in range(count)]
        self._logits = [[_BLANK] * cells for _ in range(count)]
        self._reached = [[False] * cells for _ in range(count)]
        self._initial: Rows = []
        self._initial_dtype = torch.promote_types(torch.float32, dtype)
        self._dtype = torch.float32

    def note(self, decision: CellDecision, op_weights: Tensor | None = None) -> None:
        """Add what a cell decided for the images that reach it.

        Args:
            decision: of its gate.
            op_weights: (active, O) of its operations, for images whose cell is not closed.

        The initial cell decides for the images in their order, some at a time or all at once.
        """
        index = decision.node.index
        if op_weights is not None:
            self._chosen.append((index, decision.images_at(decision.active), op_weights))
        if index < 0:
            self._initial += decision.gates
            self._initial_dtype = decision.dtype
            return
        self._dtype = torch.promote_types(self._dtype, decision.dtype)
        for image, gates, logits in zip(
            decision.images, decision.gates, decision.logits, strict=True
        ):
            self._gates[image][index] = gates
            self._logits[image][index] = logits
            self._reached[image][index] = True

    def gates(self) -> Tensor:
        """(N, cells, T) gates noted so far."""
        return self._table(self._gates)

    def logits(self) -> Tensor:
        """(N, cells, T) logits noted so far."""
        return self._table(self._logits)

    def _table(self, rows: list[Rows]) -> Tensor:
        shape = (len(rows), self._cells, len(TRANSFORMS))
        return torch.tensor(rows, dtype=self._dtype).view(shape)

    def record(self, costs: CostTensors, size: tuple[int, int], device: torch.device) -> Routing:
        """The record, on ``device``."""
        gates, logits = self.gates(), self.logits()  # (N, cells, T)
        # Views, as a batch of no images makes lists that do not tell their other axes.
        initial = torch.tensor(self._initial, dtype=self._initial_dtype).view(-1, len(TRANSFORMS))
        reached = torch.tensor(self._reached, dtype=torch.bool).view(gates.shape[:2])  # (N, cells)
        op_weights = self._op_weights()
        on_device = None if op_weights is None else to_device(op_weights, device)
        return Routing(
            activations=to_device(gates.flatten(1), device),
            logits=to_device(logits.flatten(1), device),
            initial=to_device(initial, device),
            reached=to_device(reached, device),
            expected_cost=to_device(costs.expected(gates, initial, op_weights), device),
            real_cost=to_device(costs.real(gates, initial, reached, op_weights), device),
            full_cost=costs.full_cost,
            fixed_cost=costs.stem,
            full_real_cost=costs.full_real_cost,
            size=size,
            op_weights=on_device,
            # Without noise, what would be chosen is what was.
            op_loads=None if on_device is None else (on_device > 0).to(on_device.dtype),
        )

    def _op_weights(self) -> Tensor | None:
        """(N, cells, O) on the host; None where all operations are summed."""
        if not self._ops:
            return None
        table = torch.zeros(len(self._gates), self._cells, self._ops)
        for index, images, weights in self._chosen:
            table[images, index] = weights.float().cpu()
        return table


class Stages:
    """The parts that images run through: stage 0 is the initial cell, stage l + 1 is layer l.

    Args:
        network: the network, in evaluation.
        dtype: precision of weights and maps.

    Attributes:
        space: the routing space.
        channels: channels at stride 4.
        numbers: of all stages.
        ops: O, operations of a cell where they are chosen by image, else 0.
    """

    def __init__(self, network: DynamicRoutingNetwork | StaticNetwork, dtype: torch.dtype) -> None:
        self.space = network.space
        self.numbers = range(self.space.num_layers + 1)
        self.dtype = dtype
        self.channels = network.channels
        self.ops = max((len(c.ops) for c in network.cells() if c.op_gate is not None), default=0)
        self._reach = network.initial.reach
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

    def start(self, x: Tensor, images: list[int]) -> list[InPlaceInputSum]:
        """Run the stem.

        Args:
            x: (N, in_channels, H, W).
            images: which of them, neighbours.

        Returns:
            The input sums of stage 0, its one cell's.
        """
        size = self.space.map_sizes(*x.shape[-2:])[0]
        if not images:
            return [InPlaceInputSum([], (self.channels, *size), x.new_empty(0, dtype=self.dtype))]
        # (n, C, rows, columns)
        maps = self._stem(rows_of(x, images).to(self.dtype, memory_format=torch.channels_last))
        input_sum = InPlaceInputSum(images, (maps.shape[1], *size), maps.new_empty(0))
        # A sum overwrites what it is given, and an unknown stem may return its own input.
        input_sum.add(maps if self._stem.owns_result else maps.clone(), images)
        return [input_sum]

    def run(
        self,
        input_sums: list[InPlaceInputSum],
        stages: Iterable[int],
        images: list[int],
        size: tuple[int, int],
        given: ImposedRoute | None,
        recorder: RoutingRecorder,
    ) -> list[InPlaceInputSum]:
        """Run stages one after the other.

        Args:
            input_sums: of the first of them, by scale; they are used up.
            stages: their numbers, rising without gaps.
            images: all images that run, rising.
            size: (height, width) of the network's input in pixels.
            given: a route to follow; None lets the gates decide.
            recorder: takes the decisions.

        Returns:
            Input sums of the stage after them; after the last one, of all images at every scale.
        """
        sizes = self.space.map_sizes(*size)
        like = input_sums[0].like
        for number in stages:
            # The cells that some image reaches; for each, its images, and their maps (n, C, H, W).
            cells = [c for c, s in zip(self._cells[number], input_sums, strict=True) if s.images]
            members = [s.images for s in input_sums if s.images]
            inputs = [s.finish() for s in input_sums if s.images]
            decisions = _decide(cells, members, inputs, given)
            input_sums = [
                InPlaceInputSum(images, (self.channels * 2**scale, *sizes[scale]), like)
                for scale, images in enumerate(self._reached(number, decisions, images))
            ]
            for cell, decision in zip(cells, decisions, strict=True):
                finer = sizes[cell.node.scale - 1] if cell.node.scale else None
                # Popped, so that the map is freed as soon as the cell is done with it.
                op_weights = cell.run(inputs.pop(0), decision, input_sums, finer)
                recorder.note(decision, op_weights)
        return input_sums

    def _reached(
        self, number: int, decisions: list[CellDecision], everyone: list[int]
    ) -> list[list[int]]:
        """Images that reach each scale after a stage."""
        if number == self.space.num_layers:
            return [everyone] * self.space.out_scales
        reached: list[set[int]] = [set() for _ in range(self.space.scales_per_layer[number])]
        for decision in decisions:
            for transform in decision.node.transforms:
                scale = decision.node.target_scale(transform)
                reached[scale].update(decision.leads(transform, self._reach))
        return [sorted(images) for images in reached]


def _decide(
    cells: list[CellPlan],
    members: list[list[int]],
    inputs: list[Tensor],
    given: ImposedRoute | None,
) -> list[CellDecision]:
    """Decisions of the cells of one layer, with at most one wait for the device."""
    decisions: dict[int, CellDecision] = {}
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
