"""The routing record of a forward through a plan, kept on the host until the end."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..routing.cost import CostTable, CostTensors, cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.record import Routing
from ..routing.space import TRANSFORMS
from .decision import Decision, Rows

_SIZES_KEPT = 256
_BLANK = [0.0] * len(TRANSFORMS)


class Costs:
    """Cost tables of a network by input size, on the host."""

    def __init__(self, network: DynamicRoutingNetwork) -> None:
        self._network = network
        self._known: dict[tuple[int, int, bool, bool], CostTensors] = {}

    def at(self, size: tuple[int, int], *, gates: bool, initial_gate: bool) -> CostTensors:
        """The table for an input (height, width), with or without the cost of gates."""
        key = (*size, gates, initial_gate)
        if key not in self._known:
            if len(self._known) >= _SIZES_KEPT:  # images of ever new sizes must not fill the memory
                self._known.clear()
            table = cost_table(self._network, *size)
            self._known[key] = without_gates(table, gates, initial_gate).tensors("cpu")
        return self._known[key]


def without_gates(table: CostTable, gates: bool = False, initial_gate: bool = False) -> CostTable:
    """A cost table that leaves out the gates that do not run."""
    if not gates:
        table = replace(table, cells=tuple(replace(c, gate=0.0) for c in table.cells))
    if not initial_gate:
        table = replace(table, initial=replace(table.initial, gate=0.0))
    return table


class Journal:
    """Collects decisions of N images.

    Args:
        count: N.
        cells: reported cells of the network.
    """

    def __init__(self, count: int, cells: int) -> None:
        self._gates = [[_BLANK] * cells for _ in range(count)]
        self._logits = [[_BLANK] * cells for _ in range(count)]
        self._reached = [[False] * cells for _ in range(count)]
        self._initial: Rows = []
        self._initial_dtype = self._dtype = torch.float32

    def note(self, decision: Decision) -> None:
        """Add what a cell decided for the images that reach it; the initial cell comes first."""
        index = decision.node.index
        if index < 0:
            self._initial, self._initial_dtype = decision.gates, decision.dtype
            return
        self._dtype = torch.promote_types(self._dtype, decision.dtype)
        for image, gates, logits in zip(
            decision.images, decision.gates, decision.logits, strict=True
        ):
            self._gates[image][index] = gates
            self._logits[image][index] = logits
            self._reached[image][index] = True

    def record(self, costs: CostTensors, size: tuple[int, int], device: torch.device) -> Routing:
        """The record, on ``device``."""
        gates = torch.tensor(self._gates, dtype=self._dtype)
        logits = torch.tensor(self._logits, dtype=self._dtype)
        initial = torch.tensor(self._initial, dtype=self._initial_dtype)
        reached = torch.tensor(self._reached)
        return Routing(
            activations=_upload(gates.flatten(1), device),
            logits=_upload(logits.flatten(1), device),
            initial=_upload(initial, device),
            reached=_upload(reached, device),
            expected_cost=_upload(costs.expected(gates, initial), device),
            real_cost=_upload(costs.real(gates, initial, reached), device),
            full_cost=costs.full_cost,
            size=size,
        )


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
