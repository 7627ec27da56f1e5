"""Stem and layers of a network, made ready to run from any layer on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..routing.network import DynamicRoutingNetwork
from ..routing.ops import Stem
from ..routing.space import Node
from .cell_plan import CellPlan
from .constants import ConstantMaps, Outcome
from .convolution import Chain
from .decision import AssumedDecision, CellDecision, ImposedRoute, Openness, all_open, from_logits
from .input_sum import InPlaceInputSum, rows_of
from .static_network import StaticNetwork

# Images run side by side on a CPU while their maps of stride 4 fit in this: more would leave the
# caches and be slower than fewer images at a time, fewer would pay for every call anew.
_CPU_BYTES = 4 * 2**20


class Recorder(Protocol):
    """Takes decisions, see ``RoutingRecorder``."""

    def note(self, decision: CellDecision, op_weights: Tensor | None = None) -> None:
        """Add what a cell decided, and the weights of its operations where they are chosen."""
        ...


class Assumptions(Protocol):
    """What the gates of a stage are taken to open, before the host knows."""

    def assumed(self, node: Node, images: list[int]) -> list[Openness] | None:
        """Of images that reach a cell; None: ask its gate."""
        ...

    def saw(self, decisions: list[CellDecision]) -> None:
        """Take in what the cells of the stage decided, or were taken to."""
        ...


class Stages:
    """The parts that images run through: stage 0 is the initial cell, stage l + 1 is layer l.

    Args:
        network: the network, in evaluation.
        dtype: precision of weights and maps.
        specialised: pack weights for each size of maps on a CPU, and run cells that no map comes
            to once. Both take memory.

    Attributes:
        space: the routing space.
        channels: channels at stride 4.
        numbers: of all stages.
        ops: O, operations of a cell where they are chosen by image, else 0.
    """

    def __init__(
        self,
        network: DynamicRoutingNetwork | StaticNetwork,
        dtype: torch.dtype,
        *,
        specialised: bool = False,
    ) -> None:
        self._constants = ConstantMaps() if specialised else None
        self.space = network.space
        self.numbers = range(self.space.num_layers + 1)
        self.dtype = dtype
        self.channels = network.channels
        self.ops = max((len(c.ops) for c in network.cells() if c.op_gate is not None), default=0)
        self._reach = network.initial.reach
        stem = network.stem
        # The stem's children run in a row; another module in its place runs as it is.
        row = nn.Sequential(*stem.children()) if type(stem) is Stem else stem
        self._stem = Chain(row, dtype, packs=specialised)
        self._cells: list[list[CellPlan]] = [[] for _ in range(self.space.num_layers + 1)]
        for cell in (network.initial, *network.cells()):
            self._cells[cell.node.layer + 1].append(CellPlan(cell, dtype, packs=specialised))

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

    def arrived(
        self,
        inputs: list[Tensor],
        number: int,
        decided: Iterable[tuple[int, Openness]],
        size: tuple[int, int],
        images: list[int],
    ) -> list[InPlaceInputSum]:
        """Input sums of a stage of which each cell is reached by all images, or none.

        Args:
            inputs: (n, C, H, W) of the cells that are reached, by scale; they are overwritten.
            number: of the stage.
            decided: the numbers of these cells, and what they will open.
            size: (height, width) of the network's input in pixels.
            images: all that run.
        """
        sizes, given = self.space.map_sizes(*size), iter(inputs)
        numbers = {index for index, _ in decided}
        found = []
        for cell in self._cells[number]:
            reached = cell.node.index in numbers
            shape = (cell.channels, *sizes[cell.node.scale])
            found.append(InPlaceInputSum(images if reached else [], shape, inputs[0][:0]))
            if reached:
                found[-1].add(next(given), images)
        return found

    def run(
        self,
        input_sums: list[InPlaceInputSum],
        stages: Iterable[int],
        images: list[int],
        size: tuple[int, int],
        given: ImposedRoute | None,
        recorder: Recorder,
        assumptions: Assumptions | None = None,
    ) -> list[InPlaceInputSum]:
        """Run stages one after the other.

        Args:
            input_sums: of the first of them, by scale; they are used up.
            stages: their numbers, rising without gaps.
            images: all images that run, rising.
            size: (height, width) of the network's input in pixels.
            given: a route to follow; None lets the gates decide.
            recorder: takes the decisions.
            assumptions: what gates are taken to open; None asks each.

        Returns:
            Input sums of the stage after them; after the last one, of all images at every scale.
        """
        sizes = self.space.map_sizes(*size)
        like = input_sums[0].like
        for number in stages:
            # The cells that some image reaches; for each, its images, and their maps (n, C, H, W).
            reached = [
                (c, s) for c, s in zip(self._cells[number], input_sums, strict=True) if s.images
            ]
            shapes = [(self.channels * 2**scale, *size) for scale, size in enumerate(sizes)]
            known = [self._outcome(c, s, shapes, given) for c, s in reached]
            live = [pair for pair, outcome in zip(reached, known, strict=True) if outcome is None]
            inputs = [s.finish() for _, s in live]
            cells, members = [c for c, _ in live], [s.images for _, s in live]
            asked = iter(_decide(cells, members, inputs, given, assumptions))
            decisions = [
                next(asked) if outcome is None else outcome.decided(s.images)
                for (_, s), outcome in zip(reached, known, strict=True)
            ]
            if assumptions is not None:
                assumptions.saw(decisions)
            input_sums = [
                InPlaceInputSum(images, shapes[scale], like)
                for scale, images in enumerate(self._reached(number, decisions, images))
            ]
            for (cell, _), decision, outcome in zip(reached, decisions, known, strict=True):
                finer = sizes[cell.node.scale - 1] if cell.node.scale else None
                if outcome is not None:
                    outcome.send(decision.images, input_sums)
                    recorder.note(decision)
                    continue
                # Popped, so that the map is freed as soon as the cell is done with it.
                op_weights = cell.run(inputs.pop(0), decision, input_sums, finer)
                recorder.note(decision, op_weights)
        return input_sums

    def _outcome(
        self,
        cell: CellPlan,
        input_sum: InPlaceInputSum,
        shapes: list[tuple[int, int, int]],
        given: ImposedRoute | None,
    ) -> Outcome | None:
        """What a cell is known to make of its input sum; None: it has to run."""
        if self._constants is None or given is not None or input_sum.constants is None:
            return None
        scale = cell.node.scale
        return self._constants.of(cell, input_sum, shapes, shapes[scale - 1][1:] if scale else None)

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
    assumptions: Assumptions | None,
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
            rows = None if assumptions is None else assumptions.assumed(cell.node, images)
            if rows is None:
                asked.append(index)
            else:
                logits = cell.gate(inputs[index])
                decisions[index] = AssumedDecision(cell.node, images, rows, logits)
    answered = [cells[i].gate(inputs[i]) for i in asked]  # type: ignore[misc]
    nodes = [cells[i].node for i in asked]
    answers = from_logits(nodes, [members[i] for i in asked], answered)
    decisions.update(zip(asked, answers, strict=True))
    return [decisions[index] for index in range(len(cells))]


def joined(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Maps by scale of a whole batch, from those of neighbouring images one after the other."""
    if len(parts) == 1:
        return parts[0]
    return [torch.cat(maps) for maps in zip(*parts, strict=True)]


def result_dtype(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Precision of what leaves a plan that computes in ``dtype``: that of the images."""
    return x.dtype if x.is_floating_point() else dtype
