"""From the decisions of cells to the record of a batch, with its costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from ..routing.cost import SIZES_KEPT, CostTensors, cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from ..routing.space import TRANSFORMS
from ..routing.transfer import to_device
from .decision import AssumedDecision, CellDecision, ImposedRoute, Rows
from .static_network import StaticNetwork

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

    def along(self, size: tuple[int, int], given: ImposedRoute | None) -> CostTensors:
        """The table where images follow a route, whose gates need not run; None: their own."""
        if given is None:
            layers = self._network.space.num_layers
            return self.at(size, gated_layers=layers, initial_gate=True)
        return self.at(size, gated_layers=0, initial_gate=not given.decides_initial)


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
        self._initial: Rows = [_BLANK] * count
        self._assumed: list[tuple[Sequence[AssumedDecision], Tensor]] = []
        self._initial_dtype = torch.promote_types(torch.float32, dtype)
        self._dtype = torch.float32

    def note(self, decision: CellDecision, op_weights: Tensor | None = None) -> None:
        """Add what a cell decided for the images that reach it.

        Args:
            decision: of its gate.
            op_weights: (active, O) of its operations, for images whose cell is not closed.

        What was assumed is noted by :meth:`settle`.
        """
        index = decision.node.index
        if isinstance(decision, AssumedDecision):
            self.expect([decision], decision.numbers)
            return
        if op_weights is not None:
            self._chosen.append((index, decision.images_at(decision.active), op_weights))
        if index < 0:
            for image, gates in zip(decision.images, decision.gates, strict=True):
                self._initial[image] = gates
            self._initial_dtype = decision.dtype
            return
        self._dtype = torch.promote_types(self._dtype, decision.dtype)
        for image, gates, logits in zip(
            decision.images, decision.gates, decision.logits, strict=True
        ):
            self._gates[image][index] = gates
            self._logits[image][index] = logits
            self._reached[image][index] = True

    def expect(self, decisions: Sequence[AssumedDecision], numbers: Tensor) -> None:
        """Note decisions by :meth:`settle`, by their numbers (2, …) one after the other."""
        self._assumed.append((decisions, numbers))

    def settle(self) -> set[int]:
        """Note what gates really decided that had been assumed; one wait for the device.

        Returns:
            The images of which something else was assumed: what was computed for them is wrong.
        """
        if not self._assumed:
            return set()
        assumed, self._assumed = self._assumed, []
        numbers = torch.cat([own for _, own in assumed], dim=1).tolist()
        wrong: set[int] = set()
        start = 0
        for decision in (each for decisions, _ in assumed for each in decisions):
            stop = start + len(decision.images) * len(decision.node.transforms)
            real = decision.settled([each[start:stop] for each in numbers])
            pairs = zip(real.openness, decision.openness, strict=True)
            wrong.update(real.images[p] for p, (one, other) in enumerate(pairs) if one != other)
            self.note(real)
            start = stop
        return wrong

    def forget(self, images: Iterable[int]) -> None:
        """Forget what was noted for some images."""
        for image in images:
            for table in (self._gates, self._logits):
                table[image] = [_BLANK] * self._cells
            self._reached[image] = [False] * self._cells
            self._initial[image] = _BLANK

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
