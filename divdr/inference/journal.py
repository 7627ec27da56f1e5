"""The routing record of a forward through a plan, kept on the host until the end."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..routing.cost import CostTensors, cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from ..routing.space import TRANSFORMS
from .decision import Decision, Rows
from .static_network import StaticNetwork

_SIZES_KEPT = 256
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
            if len(self._known) >= _SIZES_KEPT:  # images of ever new sizes must not fill the memory
                self._known.clear()
            table = cost_table(self._network, *size)
            gated = sum(self._network.space.scales_per_layer[:gated_layers])
            self._known[key] = table.without_gates(gated, initial_gate).tensors("cpu")
        return self._known[key]


class Journal:
    """Collects decisions of N images.

    Args:
        count: N.
        cells: reported cells of the network.
        dtype: precision of the maps.
    """

    def __init__(self, count: int, cells: int, dtype: torch.dtype) -> None:
        self._cells = cells
        self._gates = [[_BLANK] * cells for _ in range(count)]
        self._logits = [[_BLANK] * cells for _ in range(count)]
        self._reached = [[False] * cells for _ in range(count)]
        self._initial: Rows = []
        self._initial_dtype = torch.promote_types(torch.float32, dtype)
        self._dtype = torch.float32

    def note(self, decision: Decision) -> None:
        """Add what a cell decided for the images that reach it.

        The initial cell decides for the images in their order, some at a time or all at once.
        """
        index = decision.node.index
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
        """(N, cells, 3) gates noted so far."""
        return self._table(self._gates)

    def logits(self) -> Tensor:
        """(N, cells, 3) logits noted so far."""
        return self._table(self._logits)

    def _table(self, rows: list[Rows]) -> Tensor:
        shape = (len(rows), self._cells, len(TRANSFORMS))
        return torch.tensor(rows, dtype=self._dtype).view(shape)

    def record(self, costs: CostTensors, size: tuple[int, int], device: torch.device) -> Routing:
        """The record, on ``device``."""
        gates, logits = self.gates(), self.logits()
        initial = torch.tensor(self._initial, dtype=self._initial_dtype).view(-1, len(TRANSFORMS))
        reached = torch.tensor(self._reached, dtype=torch.bool).view(gates.shape[:2])
        return Routing(
            activations=_upload(gates.flatten(1), device),
            logits=_upload(logits.flatten(1), device),
            initial=_upload(initial, device),
            reached=_upload(reached, device),
            expected_cost=_upload(costs.expected(gates, initial), device),
            real_cost=_upload(costs.real(gates, initial, reached), device),
            full_cost=costs.full_cost,
            fixed_cost=costs.stem,
            full_real_cost=costs.full_real_cost,
            size=size,
        )


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
