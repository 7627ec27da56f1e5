"""A static sub-network: the cells of one route, without gates, as a module, and its export."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DivdrError
from ..routing.cell import Cell, transformed
from ..routing.chosen_ops import chosen_sum
from ..routing.network import DynamicRoutingNetwork
from ..routing.open_paths import is_closed, is_open
from ..routing.space import KEEP, TRANSFORMS, UP
from .route import Route

Size = tuple[int, int]


class StaticCell(nn.Module):
    """What a route leaves of a cell: the layers it needs, and its gates as constants.

    A cell that the route leads past holds no layers; one that it closes passes its input on.

    Args:
        cell: the cell, which is copied.
        gates: [up, keep, down], all 0 where the route does not lead to the cell.

    Attributes:
        node: place in the routing space.
        channels: channels of its maps.
        gate: None; there is none.
        reach: "open".
        op_gate: chooses operations for each image still; None where all are summed.
        gates: as given.
        runs: whether it computes anything.
    """

    def __init__(self, cell: Cell, gates: list[float]) -> None:
        super().__init__()
        self.node, self.channels = cell.node, cell.channels
        self.gate, self.reach = None, "open"
        self.gates = gates
        closed = is_closed(sum(gates))
        self.runs = not closed
        self.op_gate = copy.deepcopy(cell.op_gate) if self.runs else None
        ops = cell.ops.items() if self.runs else ()
        self.ops = nn.ModuleDict({name: copy.deepcopy(op) for name, op in ops})
        self.changes = nn.ModuleDict(
            {
                name: copy.deepcopy(change)
                for name, change in cell.changes.items()
                if is_open(gates[TRANSFORMS.index(name)], closed)
            }
        )

    def forward(self, x: Tensor, finer: Size | None) -> list[tuple[int, Tensor]]:
        """Run the cell.

        Args:
            x: (N, C, H, W).
            finer: (rows, columns) of the next finer map, for the up transform.

        Returns:
            (transform, maps) of each open transform, weighted by its gate.
        """
        if not self.runs:
            return [(KEEP, x)] if KEEP in self.node.transforms else []
        if self.op_gate is None:
            first, *others = (op(x) for op in self.ops.values())
            feature = F.relu(sum(others, first))
        else:
            weights = self.op_gate(x).weights
            feature = F.relu(chosen_sum(list(self.ops.values()), x, weights))
        leaving = []
        for transform, gate in enumerate(self.gates):
            if is_open(gate, not self.runs):
                # Weighting before the upsampling is the same and touches a quarter of the numbers.
                maps = transformed(feature, transform, self.changes) * gate
                if transform == UP:
                    maps = F.interpolate(maps, size=finer, mode="bilinear", align_corners=False)
                leaving.append((transform, maps))
        return leaving


class StaticNetwork(nn.Module):
    """The sub-network of a route. Its state dict has the network's names, as far as they remain.

    It can be trained, exported and planned (``InferencePlan``) like any module.

    Args:
        network: the supernet, which is copied.
        route: which cells run, and how much of them goes where.

    Attributes:
        space: the routing space.
        channels: channels at stride 4.
        route: as given.
        early: None; nothing is left to decide.
    """

    def __init__(self, network: DynamicRoutingNetwork, route: Route) -> None:
        super().__init__()
        self.space, self.channels, self.route = network.space, network.channels, route
        self.early = None
        gates = route.activations.view(-1, len(TRANSFORMS)).tolist()
        self.stem = copy.deepcopy(network.stem)
        self.initial = StaticCell(network.initial, route.initial.tolist())
        cells = [StaticCell(cell, row) for cell, row in zip(network.cells(), gates, strict=True)]
        self.layers = nn.ModuleList(
            nn.ModuleList(cells[node.index] for node in layer) for layer in self.space.layers
        )
        self.train(network.training)

    def cells(self) -> list[StaticCell]:
        """The reported cells in the order of A(x), the empty ones among them."""
        return [cell for layer in self._layers() for cell in layer]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run every image along the route.

        Args:
            x: (N, in_channels, H, W), normalised.

        Returns:
            The maps of the last layer, stride 4 first, each (N, C·2^s, H_s, W_s); zero where the
            route does not lead.
        """
        sizes = self.space.map_sizes(x.shape[-2], x.shape[-1])
        arrived: list[Tensor | None] = [self.stem(x)]
        rows = [[self.initial], *self._layers()]
        scales = [*self.space.scales_per_layer, self.space.out_scales]
        for row, count in zip(rows, scales, strict=True):
            following: list[Tensor | None] = [None] * count
            for cell, maps in zip(row, arrived, strict=True):
                if maps is None:
                    continue
                scale = cell.node.scale
                for transform, leaving in cell(maps, sizes[scale - 1] if scale else None):
                    target = cell.node.target_scale(transform)
                    before = following[target]
                    following[target] = leaving if before is None else before + leaving
            arrived = following
        for scale, maps in enumerate(arrived):
            if maps is None:
                shape = (x.shape[0], self.channels * 2**scale, *sizes[scale])
                arrived[scale] = x.new_zeros(shape)
        return cast(list[Tensor], arrived)

    def _layers(self) -> list[list[StaticCell]]:
        return [[cast(StaticCell, c) for c in cast(nn.ModuleList, row)] for row in self.layers]


FORMATS = ("pt2", "onnx")


def export(module: nn.Module, x: Tensor, path: Path) -> float:
    """Write a module and run the file on an example; the batch size stays free.

    Args:
        module: in evaluation; it takes (N, C, H, W) and returns maps, or one map.
        x: (1, C, H, W), an example; the height and width are those of the file.
        path: the file; its ending, ".pt2" (``torch.export``) or ".onnx", says which kind.

    Returns:
        Largest error of the file's outputs on two images, relative to the largest output.

    Raises:
        DivdrError: the ending is another, or a package that ONNX needs is missing; or images choose
            operations, which an exported program cannot.
    """
    if any(getattr(cell, "op_gate", None) is not None for cell in module.modules()):
        raise DivdrError(
            "networks whose images choose operations (MODEL.ROUTING.OP_GATE) cannot be exported"
        )
    pair = torch.cat([x, x.flip(3) * 0.5])
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        # An example of two images: a batch of one would be taken for a constant.
        program = torch.export.export(module, (pair,), dynamic_shapes=({0: batch},))
        wanted = _maps(module(pair))
        if path.suffix == ".pt2":
            torch.export.save(program, path)
            found = _maps(torch.export.load(path).module()(pair))
        elif path.suffix == ".onnx":
            found = _through_onnx(program, pair, path)
        else:
            raise DivdrError(f"{path.name}: export writes .{' and .'.join(FORMATS)} files")
    largest = max(float(maps.abs().max()) for maps in wanted)
    error = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    return error / max(largest, 1e-12)


def _through_onnx(program: torch.export.ExportedProgram, x: Tensor, path: Path) -> list[Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it and says so at length
    except ImportError as error:
        raise DivdrError(
            f"exporting to ONNX needs onnx, onnxscript and onnxruntime ({error}): "
            "pip install divdr[export]"
        ) from None
    torch.onnx.export(
        program,
        (x,),
        str(path),
        input_names=["images"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [torch.from_numpy(y) for y in session.run(None, {name: x.cpu().numpy()})]


def _maps(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
