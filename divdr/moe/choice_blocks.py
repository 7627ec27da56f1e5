"""Cells of choice blocks, each of which chooses its inputs and its operations for every image.

The search space of Bender et al. 2018 as a routing network (Ramachandran & Le, Figure 3 and Section
4.3). N samples, F channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..routing.ops import NormFactory, conv_norm
from ..settings import PerExampleSettings
from .gates import Gating, anneal_k
from .multiply_adds import part_macs
from .per_example import BodyCost, layer_cost
from .routing_layer import Context, Router, RoutingLayer

BLOCKS = 4
"""Choice blocks of a cell; with two decisions each, 6 cells make the paper's 48, 12 its 96."""


@dataclass(frozen=True)
class BlockParts:
    """What choice blocks are made of.

    Attributes:
        router: kind of all gates.
        task_width: of the tasks' embeddings, 0 without.
        layer: makes the routing layer over the operations, from channels and k.
        norm: makes a normalisation layer.
        noise: of the gates over inputs, see ``NoisyTopKGate``.
    """

    router: str
    task_width: int
    layer: Callable[[int, int], RoutingLayer]
    norm: NormFactory
    noise: float = PerExampleSettings.noise


class ChoiceBlock(nn.Module):
    """Adds up the inputs that a gate chooses, and routes the sum through operations.

    The gate of the inputs sees the means of all of them. An input that is not chosen has weight 0;
    as inputs are there already, nothing has to run for them.

    Args:
        inputs: how many maps there are to choose from.
        channels: F of each.
        k_inputs: inputs that are chosen.
        k: operations that are chosen.
        parts: of the network.
    """

    def __init__(
        self, inputs: int, channels: int, k_inputs: int, k: int, parts: BlockParts
    ) -> None:
        super().__init__()
        self.inputs = Router(
            parts.router,
            inputs * channels,
            parts.task_width,
            inputs,
            min(k_inputs, inputs),
            parts.noise,
        )
        self.operations = parts.layer(channels, k)

    def forward(self, maps: Sequence[Tensor], context: Context) -> tuple[Tensor, list[Gating]]:
        """Maps (N, F, H, W) to another, and both decisions."""
        means = torch.cat([each.flatten(2).mean(2) for each in maps], dim=1)
        inputs = self.inputs(means, context)
        weights = inputs.weights[:, :, None, None, None].to(maps[0].dtype)
        total = (torch.stack(list(maps), dim=1) * weights).sum(1)
        output, operations = self.operations(total, context)
        return output, [inputs, operations]


class ChoiceCell(nn.Module):
    """Choice blocks over the outputs of two cells; its output is all blocks' maps together.

    Args:
        in_channels: of both inputs.
        strides: pixels of each input that one of the cell stands for, in both directions.
        channels: F of the blocks.
        k_inputs: from the number of a block's inputs to how many are chosen.
        k: operations that are chosen.
        parts: of the network.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        channels: int,
        k_inputs: Callable[[int], int],
        k: int,
        parts: BlockParts,
    ) -> None:
        super().__init__()
        self.align = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(stride), conv_norm(count, channels, parts.norm))
            for count, stride in zip(in_channels, strides, strict=True)
        )
        counts = [len(in_channels) + block for block in range(BLOCKS)]
        self.blocks = nn.ModuleList(
            ChoiceBlock(count, channels, k_inputs(count), k, parts) for count in counts
        )
        self.out_channels = BLOCKS * channels

    def own(self) -> list[ChoiceBlock]:
        """Its blocks, in their order."""
        return [block for block in self.blocks if isinstance(block, ChoiceBlock)]

    def forward(self, before: Sequence[Tensor], context: Context) -> tuple[Tensor, list[Gating]]:
        """Two cells' outputs to this one's, and the eight decisions."""
        maps = [align(x) for align, x in zip(self.align, before, strict=True)]
        outputs, decided = len(maps), []
        for block in self.blocks:
            output, own = block(maps, context)
            maps.append(output)
            decided += own
        return torch.cat(maps[outputs:], dim=1), decided


class RoutedCells(nn.Module):
    """Cells, each over the two before it; the first has the stem's map twice.

    After a third of them and after two thirds the map is halved and F doubled. Unlike in Bender et
    al. every cell and every image has its own choices. That a cell's blocks are put together and
    that 1 × 1 convolutions bring inputs to F channels is theirs; where the map is halved is not in
    either text.

    Args:
        in_channels: of the stem's map.
        channels: F of the first third.
        cells: C.
        k_first: operations that the first cell chooses.
        k_last: the last.
        parts: of the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        cells: int,
        k_first: int,
        k_last: int,
        parts: BlockParts,
    ) -> None:
        super().__init__()
        halved = {cells // 3, 2 * cells // 3} - {0}
        widths, strides = [in_channels] * 2, [1, 1]
        made, scale = [], 0
        for number, k in enumerate(anneal_k(k_first, k_last, cells)):
            scale += number in halved
            cell = ChoiceCell(
                widths[-2:],
                [2**scale // stride for stride in strides[-2:]],
                channels * 2**scale,
                _annealed_inputs(number, cells, k_last),
                k,
                parts,
            )
            made.append(cell)
            widths.append(cell.out_channels)
            strides.append(2**scale)
        self.cells = nn.ModuleList(made)
        self.out_channels = widths[-1]

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, list[Gating]]:
        """The stem's map to the last cell's, and all decisions."""
        before, decided = [x, x], []
        for cell in self.cells:
            output, own = cell(before, context)
            before = [before[1], output]
            decided += own
        return before[1], decided

    def _own(self) -> list[ChoiceCell]:
        return [cell for cell in self.cells if isinstance(cell, ChoiceCell)]

    def choices(self) -> list[tuple[str, tuple[str, ...]]]:
        """Inputs and operations of each block of each cell."""
        found = []
        for number, cell in enumerate(self._own(), start=1):
            for place, block in enumerate(cell.own(), start=1):
                where = f"cell {number}, block {place}"
                inputs = [f"input {i}" for i in range(1, block.inputs.gate.experts + 1)]
                found.append((f"{where}, inputs", tuple(inputs)))
                found.append((f"{where}, operations", block.operations.names))
        return found

    def cost(self, shape: Sequence[int]) -> BodyCost:
        """1 × 1 convolutions and gates are shared, inputs cost nothing, operations if they run."""
        before, shared, experts = [tuple(shape)] * 2, 0.0, []
        for cell in self._own():
            for align, own in zip(cell.align, before, strict=True):
                macs, inner = part_macs(align, own)
                shared += macs
            for block in cell.own():
                gate = block.inputs.gate.score
                operations = layer_cost(block.operations, inner)
                shared += gate.in_features * gate.out_features + operations.shared
                experts += [0.0] * gate.out_features
                experts += operations.experts
            before = [before[1], (cell.out_channels, *inner[1:])]
        return BodyCost(shared, tuple(experts), before[1])


def _annealed_inputs(cell: int, cells: int, k_last: int) -> Callable[[int], int]:
    """K of a cell's input decisions: all inputs in the first cell, ``k_last`` in the last."""
    return lambda inputs: anneal_k(inputs, min(inputs, k_last), cells)[cell]
