"""A route that can be read and edited by hand, or voted for by many images."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..routing.cost import cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.open_paths import is_closed, is_open, reached_cells
from ..routing.record import Routing
from ..routing.space import KEEP, TRANSFORMS, Node, RoutingSpace


@dataclass(frozen=True, eq=False)
class Route:
    """The gates of one route through a routing space, the initial cell's among them.

    A gate is named by its cell's layer (from 0; -1 is the initial cell), its cell's stride (4, 8,
    …) and "up", "keep" or "down": ``route[3, 8, "down"]``. A cell with every gate closed passes
    its input on along keep. Edits give a new route; what they cut off is left out when the route
    is read, not forgotten, so that opening the way again brings it back. A cell is reached by open
    paths, whatever the network's ``reach``.

    Attributes:
        space: the routing space.
        gates: (cells, T) values in [0, 1], as edited, float32 on the host.
        initial: (T,) gates of the initial cell.
        constant: indices of cells whose gates are these numbers for every image, in a network of
            the route whose other gates decide; -1 is the initial cell.
    """

    space: RoutingSpace
    gates: Tensor
    initial: Tensor
    constant: frozenset[int] = frozenset()

    @classmethod
    def open(cls, space: RoutingSpace, value: float = 1.0) -> Route:
        """Every gate at ``value``."""
        gates = torch.zeros(space.num_cells, len(TRANSFORMS))
        for node in space.cells:
            gates[node.index, list(node.gated)] = value
        initial = torch.zeros(len(TRANSFORMS))
        initial[list(space.initial.gated)] = value
        return cls(space, gates, initial)

    @classmethod
    def of(cls, space: RoutingSpace, routing: Routing, image: int = 0) -> Route:
        """The route that an image took.

        Raises:
            ValueError: the record belongs to another routing space.
        """
        if routing.activations.shape[1] != space.activation_size:
            raise ValueError(
                f"the record has {routing.activations.shape[1]} gates, the routing space "
                f"{space.activation_size}"
            )
        gates = routing.activations[image].detach().float().cpu().view(space.num_cells, -1)
        return cls(space, gates.clone(), routing.initial[image].detach().float().cpu().clone())

    def __getitem__(self, gate: tuple[int, int, str]) -> float:
        """Value of the gate (layer, stride, transform), as edited.

        Raises:
            KeyError: there is no such gate.
        """
        node, transform = self._find(*gate)
        return float(self._row(node)[transform])

    def opened(self, layer: int, stride: int, transform: str, value: float = 1.0) -> Route:
        """The route with one gate at ``value``.

        Raises:
            KeyError: there is no such gate.
            ValueError: ``value`` is not in (0, 1].
        """
        if not 0.0 < value <= 1.0:
            raise ValueError(f"an open gate is above 0 and at most 1, not {value}")
        return self._edited(layer, stride, [transform], value)

    def closed(self, layer: int, stride: int, transform: str | None = None) -> Route:
        """The route with one gate closed, or all of a cell's.

        Raises:
            KeyError: there is no such cell or gate.
        """
        names = [TRANSFORMS[t] for t in self._node(layer, stride).gated]
        return self._edited(layer, stride, names if transform is None else [transform], 0.0)

    @property
    def reached(self) -> Tensor:
        """(cells,) bool, whether an open path leads into the cell."""
        return torch.tensor(reached_cells(self.space, self.gates, self.initial))

    @property
    def activations(self) -> Tensor:
        """(D,) gate values in the order of A(x), 0 for cells that are not reached."""
        return (self.gates * self.reached[:, None]).flatten()

    def cells(self) -> list[tuple[int, int]]:
        """(layer, stride) of the reported cells that run: reached, with a gate open."""
        inside = self.reached
        return [
            (node.layer, 4 * 2**node.scale)
            for node in self.space.cells
            if inside[node.index] and not is_closed(float(self.gates[node.index].sum()))
        ]

    def restricted(self) -> RoutingSpace:
        """The space of this route alone: its cells, and of their transforms those that are open.

        Values of gates do not matter, beyond whether they are open. A reached cell whose gates are
        all closed is bare. Axes of A(x) stay as they are.
        """
        inside = [True, *self.reached.tolist()]
        rows = [self.initial.tolist(), *self.gates.tolist()]
        nodes = (self.space.initial, *self.space.cells)
        opened: list[tuple[int, ...] | None] = []
        for node, row, reached in zip(nodes, rows, inside, strict=True):
            closed = is_closed(sum(row))
            here = tuple(t for t in node.gated if is_open(row[t], closed))
            passes = closed and KEEP in node.transforms
            opened.append((None if passes else here) if reached else ())
        return RoutingSpace(self.space.scales_per_layer, tuple(opened), self.constant)

    def write(self, path: str | Path) -> None:
        """Write the route as JSON, which ``MODEL.ROUTING.ROUTE`` may name and people may edit."""
        state = {
            "scales_per_layer": list(self.space.scales_per_layer),
            "transforms": list(TRANSFORMS),
            "initial": _rounded(self.initial),
            "gates": [_rounded(row) for row in self.gates * self.reached[:, None]],
        }
        if self.constant:
            state["constant"] = sorted(self.constant)
        lines = json.dumps(state).replace('"gates": [[', '"gates": [\n[').replace("], [", "],\n[")
        Path(path).write_text(lines + "\n", encoding="utf-8")

    def real_cost(
        self, network: DynamicRoutingNetwork, height: int, width: int, *, gates: bool = False
    ) -> float:
        """Multiply-adds that the route takes for one image of ``height`` × ``width`` pixels.

        Where images choose operations, all of a cell's count.

        Args:
            network: a network over the same space.
            height: rows of the input.
            width: columns of the input.
            gates: count the gates of the cells on the way too, as if the route were decided and
                not given.
        """
        table = cost_table(network, height, width)
        costs = (table if gates else table.without_gates()).tensors("cpu")
        inside = self.reached
        running = (self.gates * inside[:, None])[None]
        return float(costs.real(running, self.initial[None], inside[None]))

    def _edited(self, layer: int, stride: int, transforms: list[str], value: float) -> Route:
        found = [self._find(layer, stride, transform) for transform in transforms]
        copy = replace(self, gates=self.gates.clone(), initial=self.initial.clone())
        for node, transform in found:
            copy._row(node)[transform] = value
        return copy

    def _row(self, node: Node) -> Tensor:
        return self.initial if node.index < 0 else self.gates[node.index]

    def _node(self, layer: int, stride: int) -> Node:
        nodes = (self.space.initial, *self.space.cells)
        for node in nodes:
            if (node.layer, 4 * 2**node.scale) == (layer, stride):
                return node
        raise KeyError(f"the routing space has no cell of stride {stride} in layer {layer}")

    def _find(self, layer: int, stride: int, transform: str) -> tuple[Node, int]:
        node = self._node(layer, stride)
        if transform not in TRANSFORMS or TRANSFORMS.index(transform) not in node.gated:
            names = ", ".join(TRANSFORMS[t] for t in node.gated) or "none"
            raise KeyError(
                f"the cell of stride {stride} in layer {layer} has no {transform!r}; it has {names}"
            )
        return node, TRANSFORMS.index(transform)


def vote(space: RoutingSpace, activations: Tensor, initial: Tensor, threshold: float) -> Route:
    """The route that a cluster's images agree on.

    A gate is open where more than a share ``threshold`` of the images open it, at the mean of
    their values; cells that no open path leads to are then closed.

    Args:
        space: the routing space.
        activations: (M, D) gate activations of the cluster's M images.
        initial: (M, T) gates of the initial cell.
        threshold: share of the images in [0, 1).

    Raises:
        ConfigError: there are no images, or the threshold is out of its range.
    """
    if not 0.0 <= threshold < 1.0:
        raise ConfigError(f"the threshold of a vote is a share in [0, 1), not {threshold}")
    if not len(activations):
        raise ConfigError("a cluster without images has no route to vote for")
    gates = activations.detach().cpu().view(len(activations), space.num_cells, len(TRANSFORMS))
    route = Route(space, _agreed(gates, threshold), _agreed(initial.detach().cpu(), threshold))
    reached = route.reached[:, None]
    return Route(space, torch.where(reached, route.gates, 0.0), route.initial)


def _agreed(values: Tensor, threshold: float) -> Tensor:
    """Mean over the rows that are above 0, where more than ``threshold`` of them are; else 0."""
    opened = values > 0
    share = opened.double().mean(dim=0)
    mean = values.double().sum(dim=0) / opened.sum(dim=0).clamp(min=1)
    return torch.where(share > threshold, mean, 0.0).float()


def _rounded(row: Tensor) -> list[float]:
    # To seven digits: what float32 holds.
    return [float(f"{value:.7g}") for value in row.tolist()]


def read_route(path: str | Path, space: RoutingSpace) -> Route:
    """Read what ``Route.write`` wrote.

    Args:
        path: the file.
        space: the whole routing space that it belongs to.

    Raises:
        DataError: the file is missing or damaged, belongs to another space, opens transforms or
            names cells that do not exist, or leads to no cell of the last layer.
    """
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        scales = tuple(state["scales_per_layer"])
        initial = torch.tensor(state["initial"], dtype=torch.float32)
        gates = torch.tensor(state["gates"], dtype=torch.float32)
        constant = frozenset(map(int, state.get("constant", ())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} holds no route ({reason})") from None
    if scales != space.scales_per_layer:
        raise DataError(
            f"{path} is a route through layers of {list(scales)} cells, and the network has layers "
            f"of {list(space.scales_per_layer)}"
        )
    columns = len(TRANSFORMS)
    if initial.shape != (columns,) or gates.shape != (space.num_cells, columns):
        raise DataError(f"{path} needs {columns} gates for each of {space.num_cells} cells")
    if not constant <= set(range(-1, space.num_cells)):
        raise DataError(f"{path} has constant gates of cells that do not exist: {sorted(constant)}")
    route = Route(space, gates, initial, constant)
    for node in (space.initial, *space.cells):
        for transform, value in enumerate(route._row(node).tolist()):
            if not (math.isfinite(value) and 0.0 <= value <= 1.0):
                raise DataError(f"{path} has a gate of {value}; gates are in [0, 1]")
            if value and transform not in node.gated:
                raise DataError(
                    f"{path} opens {TRANSFORMS[transform]!r} of the cell of stride "
                    f"{4 * 2**node.scale} in layer {node.layer}, which has no such transform"
                )
    if not route.reached[-space.out_scales :].any():
        raise DataError(f"{path} leads to no cell of the last layer")
    return route
