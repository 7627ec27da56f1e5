"""A network run as the published Dynamic Routing code runs one: what plans are timed against.

Li et al. (CVPR 2020); the behaviour is that of the authors' release, the code is not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..routing.cell import Cell
from ..routing.cost import CellCost, CostTable, cost_table
from ..routing.network import DynamicRoutingNetwork
from ..routing.open_paths import is_closed, is_open
from ..routing.ops import PointwiseConv2d
from ..routing.record import Routing
from ..routing.space import DOWN, KEEP


@dataclass
class _CellRun:
    """What a cell did: maps by transform, [up, keep, down] rows (N, T), costs (N,)."""

    maps: dict[int, Tensor]
    logits: Tensor
    gates: Tensor
    expected: Tensor
    real: Tensor


class PublishedRun:
    """Runs a network as the published code does, in evaluation or in training.

    Convolutions are PyTorch's own as they are, not ``PointwiseConv2d``. Maps are contiguous
    (N, C, H, W) and nothing is folded. A cell runs for the whole batch as soon as its gates, summed
    over the batch, reach 1e-4; else its input passes on. A cell that runs computes all its
    operations and every transform it has, closed or not, and multiplies by the gates at the end,
    after upsampling. Cells behind closed transforms alone run on zeros. Expected and real cost are
    added up cell by cell on the way.

    For one image these are the maps, gates and costs of a network of ``reach="published"``. So
    they are for a batch if every cell is either open (gates ≥ 1e-4) for all its images or closed
    for all; which transforms an open cell closes may differ. Otherwise an image that closes a cell
    loses the input that should pass on there, if another image opens it. ``image_by_image`` has no
    such condition and is faster where routes differ.

    In training its gradients and running statistics are those of a copy, :attr:`network`.

    Args:
        network: the supernet, in evaluation or training; its ``reach`` is not asked for.

    Attributes:
        network: what runs, a copy with the layers that the published code has.

    Raises:
        ConfigError: the network's operations are chosen for each image.
    """

    def __init__(self, network: DynamicRoutingNetwork) -> None:
        if next(network.cells()).op_gate is not None:
            raise ConfigError(
                "the published code sums all operations; MODEL.ROUTING.OP_GATE has none"
            )
        self.network = _with_plain_layers(network)
        self._tables: dict[tuple[int, int], CostTable] = {}

    @torch.no_grad()
    def image_by_image(self, x: Tensor) -> tuple[list[Tensor], Routing]:
        """Every image in a call of its own; arguments and results as of a call."""
        parts = [self(x[index : index + 1]) for index in range(len(x))]
        scales = zip(*(maps for maps, _ in parts), strict=True)
        return [torch.cat(maps) for maps in scales], _join([record for _, record in parts])

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Routing]:
        """Run the batch as one, in evaluation without a graph.

        Args:
            x: (N, in_channels, H, W), normalised.

        Returns:
            Maps of the last layer, stride 4 first, each (N, C·2^s, H_s, W_s), and the record. Its
            real cost counts what the gates of an image open, its ``reached`` holds for all images
            where it holds for one, as the batch takes one route.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.network.training):
            return self._run(x)

    def _run(self, x: Tensor) -> tuple[list[Tensor], Routing]:
        network, space = self.network, self.network.space
        size = (x.shape[-2], x.shape[-1])
        sizes = space.map_sizes(*size)
        if size not in self._tables:
            self._tables[size] = cost_table(network, *size)
        table = self._tables[size]
        maps = network.stem(x.contiguous())
        first = _run_cell(network.initial, table.initial, maps, None)
        expected, real = first.expected, first.real + table.stem
        input_sums: dict[int, Tensor] = {}
        _add_outputs(network.initial, first, input_sums)
        runs: list[_CellRun | None] = []
        cells = list(network.cells())
        for layer in space.layers:
            following: dict[int, Tensor] = {}
            for node in layer:
                if node.scale not in input_sums:
                    runs.append(None)
                    continue
                finer = sizes[node.scale - 1] if node.scale else None
                cell, cost = cells[node.index], table.cells[node.index]
                run = _run_cell(cell, cost, input_sums[node.scale], finer)
                _add_outputs(cell, run, following)
                expected, real = expected + run.expected, real + run.real
                runs.append(run)
            input_sums = following
        outputs = [
            input_sums.get(scale, maps.new_zeros(len(x), channels, *sizes[scale]))
            for scale, channels in enumerate(network.out_channels())
        ]
        blank = torch.zeros_like(first.gates)
        reached = torch.tensor([v is not None for v in runs], device=x.device)
        totals = table.tensors("cpu")
        return outputs, Routing(
            activations=torch.cat([blank if v is None else v.gates for v in runs], dim=1),
            logits=torch.cat([blank if v is None else v.logits for v in runs], dim=1),
            initial=first.gates,
            reached=reached.expand(len(x), -1).clone(),
            expected_cost=expected,
            real_cost=real,
            full_cost=totals.full_cost,
            fixed_cost=totals.stem,
            full_real_cost=totals.full_real_cost,
            size=size,
        )


def _with_plain_layers(network: DynamicRoutingNetwork) -> DynamicRoutingNetwork:
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
            elif isinstance(layer, PointwiseConv2d):
                channels = (layer.in_channels, layer.out_channels)
                plain = nn.Conv2d(*channels, 1, stride=layer.stride[0], bias=False)
                plain.weight = layer.weight
                module.add_module(name, plain)
    return copied


def _run_cell(cell: Cell, cost: CellCost, x: Tensor, finer: tuple[int, int] | None) -> _CellRun:
    logits, gates = cell.decide(x)  # (N, T)
    expected, real = _costs(cost, gates)
    if is_closed(
        float(gates.detach().sum())
    ):  # of the whole batch; the host waits here, once a cell
        return _CellRun({KEEP: x}, logits, gates, expected, real)
    total = cell.op_sum(x)
    maps = {}
    for transform in cell.node.transforms:
        weight = gates[:, transform, None, None, None].to(total.dtype)
        maps[transform] = _transformed(cell, total, transform, finer) * weight
    return _CellRun(maps, logits, gates, expected, real)


def _transformed(
    cell: Cell, total: Tensor, transform: int, finer: tuple[int, int] | None
) -> Tensor:
    maps = F.relu(total)  # anew for each transform
    if transform == KEEP:
        return maps
    if transform == DOWN:
        return cell.changes["down"](maps)
    return F.interpolate(cell.changes["up"](maps), size=finer, mode="bilinear", align_corners=False)


def _add_outputs(cell: Cell, run: _CellRun, input_sums: dict[int, Tensor]) -> None:
    """Add what leaves a cell to the input sums of the next layer, by scale."""
    for transform, maps in run.maps.items():
        scale = cell.node.target_scale(transform)
        input_sums[scale] = input_sums[scale] + maps if scale in input_sums else maps
    run.maps.clear()


def _costs(cost: CellCost, gates: Tensor) -> tuple[Tensor, Tensor]:
    """(expected, real) multiply-adds (N,) of one cell for gates (N, T)."""
    gates = gates.float()
    transforms = gates.new_tensor([t or 0.0 for t in cost.transforms])
    expected = gates.amax(dim=1) * cost.cell + (gates * transforms).sum(dim=1)
    closed = is_closed(gates.sum(dim=1))
    opened = is_open(gates, closed[:, None]).float() * transforms
    return expected, opened.sum(dim=1) + (~closed).float() * cost.cell + cost.gate


def _join(records: Sequence[Routing]) -> Routing:
    """One record of several images' own."""
    names = ("activations", "logits", "initial", "reached", "expected_cost", "real_cost")
    joined: dict[str, Any] = {
        name: torch.cat([getattr(r, name) for r in records]) for name in names
    }
    return replace(records[0], **joined)
