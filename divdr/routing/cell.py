"""One cell of the routing space: operations, a gate, and the transforms that lead onwards.

Li et al. (CVPR 2020), Section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .batch_norm import is_synchronised
from .chosen_ops import OpChoice, OpGateBuilder, chosen_sum
from .gate import Gate, open_gates
from .open_paths import is_closed, is_open, leads_on
from .ops import DropPathSchedule, NormFactory, build_op, conv_norm, drop_path
from .space import DOWN, KEEP, TRANSFORMS, UP, Node


@dataclass
class CellOutput:
    """Maps that leave a cell along one transform.

    Attributes:
        transform: ``UP``, ``KEEP`` or ``DOWN``.
        maps: (m, C', H', W').
        images: (m,) positions of these images among the cell's inputs; None for all of them.
    """

    transform: int
    maps: Tensor
    images: Tensor | None


@dataclass
class CellResult:
    """What a cell did with n images that reached it.

    Attributes:
        logits: (n, T) [up, keep, down] before ReLU(tanh(·)); 0 where there is no such transform.
        gates: (n, T) gate values.
        leads: (n, T) bool, open paths, see ``leads_on``; without meaning where there is no such
            transform.
        cell_outputs: the maps that go on.
        skipped: layers that training left out.
        choice: operations that ran for each image; None where all are summed.
    """

    logits: Tensor
    gates: Tensor
    leads: Tensor
    cell_outputs: list[CellOutput]
    skipped: list[nn.Module] = field(default_factory=list)
    choice: OpChoice | None = None


class Cell(nn.Module):
    """Sum of operations, then keep (ReLU), up and down, each weighted by its gate.

    A cell whose gates sum below 1e-4 passes its input on unchanged along keep; without a keep (the
    next layer has fewer scales) the input ends there. In evaluation only
    what an image opens is computed for it; in training everything is, so that batch statistics
    are over all images that reach the cell. ``conditional`` training leaves out what no image of
    the batch opens: the same results and gradients, as a gate at 0 has none; but running
    statistics of what does not run stay as they are.

    Args:
        node: place in the routing space.
        channels: channels at stride 4; the cell works on channels·2^scale.
        ops: names of operations (``divdr.routing.ops``).
        gate: "small", "full" or "none" (every transform open at 1).
        norm: makes the normalisation layer.
        gate_bias: start value of the gate's last bias.
        drop_path: schedule shared by the network.
        num_layers: layers of the network, for the drop path schedule.
        reach: "open" or "published", see ``DynamicRoutingNetwork``.
        conditional: train conditionally. Synchronised normalisation, for which processes wait,
            always runs.
        op_gate: makes a gate that chooses operations for each image; None sums all of them.

    Raises:
        ConfigError: no operation, the same one twice, or an unknown one.
    """

    def __init__(
        self,
        node: Node,
        channels: int,
        ops: Sequence[str],
        gate: str,
        norm: NormFactory,
        gate_bias: float,
        drop_path: DropPathSchedule,
        num_layers: int,
        reach: str,
        conditional: bool = False,
        op_gate: OpGateBuilder | None = None,
    ) -> None:
        super().__init__()
        if not ops or len(set(ops)) != len(ops):
            raise ConfigError(f"a cell needs different operations, at least one; got {list(ops)}")
        width = channels * 2**node.scale
        self.node = node
        self.channels = width
        self.ops = nn.ModuleDict({name: build_op(name, width, norm) for name in ops})
        self.changes = nn.ModuleDict()
        if UP in node.transforms:
            self.changes["up"] = conv_norm(width, width // 2, norm)
        if DOWN in node.transforms:
            self.changes["down"] = conv_norm(width, width * 2, norm, stride=2)
        self.gate = (
            None
            if gate == "none"
            else Gate(width, len(node.transforms), norm, small=gate == "small", bias=gate_bias)
        )
        # The initial cell, which no record tells of, sums all of its operations.
        choosing = op_gate is not None and node.index >= 0
        self.op_gate = (
            op_gate(width, len(ops), node.layer, num_layers)
            if op_gate is not None and choosing
            else None
        )
        self._drop_path = drop_path
        self._num_layers = num_layers
        self.reach = reach
        self._waits = is_synchronised(self)
        self._conditional = conditional and not self._waits
        # On the cell's device from the start: made in the forward, it would be a copy a cell.
        self._columns: Tensor
        self.register_buffer("_columns", torch.tensor(node.transforms), persistent=False)
        self._is_keep: Tensor
        is_keep = torch.tensor([t == KEEP for t in range(len(TRANSFORMS))])
        self.register_buffer("_is_keep", is_keep, persistent=False)

    def forward(
        self, x: Tensor, up_size: tuple[int, int] | None, imposed: Tensor | None = None
    ) -> CellResult:
        """Run the cell for images that reach it.

        Args:
            x: (n, C·2^scale, H, W).
            up_size: (rows, columns) of the next finer map, for the up transform.
            imposed: (n, T) gate values to use in place of the gate's own.
        """
        logits, gates = self.decide(x)
        if imposed is not None:
            gates = imposed
        closed = is_closed(gates.sum(dim=1))  # (n,)
        opened = is_open(gates, closed[:, None])  # (n, T)
        leads = leads_on(opened, closed[:, None], self._is_keep, self.reach)
        choice = None if self.op_gate is None else self.op_gate(x)
        if choice is not None and not self.training:
            choice = choice.of_rows(~closed)
        if not self.training:
            cell_outputs = self._run_open(x, gates, opened.cpu(), closed.cpu(), up_size, choice)
            return CellResult(logits, gates, leads, cell_outputs, [], choice)
        needed = self._needed(gates)
        cell_outputs = self._run_needed(x, gates, closed, needed, up_size, choice)
        skipped = self._others(needed, choice)
        if choice is not None:
            choice = choice.of_rows(~closed)
        return CellResult(logits, gates, leads, cell_outputs, skipped, choice)

    def decide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) → logits and gates, (n, T), 0 where there is no such transform."""
        shape = (x.shape[0], len(TRANSFORMS))
        if self.gate is None:
            gates = x.new_zeros(shape, dtype=torch.float32)
            gates[:, self._columns] = 1.0
            return gates.clone(), gates
        decided = self.gate(x)
        zeros = decided.new_zeros(shape)
        logits = zeros.index_copy(1, self._columns, decided)
        return logits, zeros.index_copy(1, self._columns, open_gates(decided))

    def _needed(self, gates: Tensor) -> Sequence[int]:
        """Transforms to train; none where the cell is closed for every image."""
        if not self._conditional:
            return self.node.transforms
        some = (gates > 0).any(dim=0).tolist()  # (T,); conditional training waits once a cell
        if not any(some):
            return ()
        # Keep costs next to nothing, and images that pass on take it.
        return [t for t in self.node.transforms if some[t] or t == KEEP]

    def _others(self, needed: Sequence[int], choice: OpChoice | None) -> list[nn.Module]:
        """Layers that run for none of the ``needed`` transforms, or that no image chose."""
        others = [m for name, m in self.changes.items() if TRANSFORMS.index(name) not in needed]
        if not needed:
            others += self.ops.values()
            return others if self.op_gate is None else [*others, self.op_gate]
        if choice is not None:
            ran = (choice.weights.detach() > 0).any(dim=0).tolist()
            others += [op for op, runs in zip(self.ops.values(), ran, strict=True) if not runs]
        return others

    def _run_needed(
        self,
        x: Tensor,
        gates: Tensor,
        closed: Tensor,
        needed: Sequence[int],
        up_size: tuple[int, int] | None,
        choice: OpChoice | None,
    ) -> list[CellOutput]:
        if not needed:
            self._draw_drop_path(x)
            return [CellOutput(KEEP, x, None)] if KEEP in self.node.transforms else []
        feature = self.feature(x, choice)
        cell_outputs = []
        for transform in needed:
            weight = gates[:, transform, None, None, None].to(feature.dtype)
            maps = transformed(F.relu(feature), transform, self.changes, weight, up_size)
            if transform == KEEP:
                maps = torch.where(closed[:, None, None, None], x.to(maps.dtype), maps)
            cell_outputs.append(CellOutput(transform, maps, None))
        return cell_outputs

    def _run_open(
        self,
        x: Tensor,
        gates: Tensor,
        opened: Tensor,
        closed: Tensor,
        up_size: tuple[int, int] | None,
        choice: OpChoice | None,
    ) -> list[CellOutput]:
        cell_outputs = []
        passing = _positions(closed, x.device)
        if KEEP in self.node.transforms and (passing is None or len(passing)):
            cell_outputs.append(CellOutput(KEEP, _rows(x, passing), passing))
        active = _positions(~closed, x.device)
        if active is not None and not len(active):
            return cell_outputs
        if choice is not None:
            choice = OpChoice(*(_rows(part, active) for part in choice))
        feature = self.feature(_rows(x, active), choice)
        for transform in self.node.transforms:
            chosen = opened[:, transform]
            if not chosen.any():
                continue
            images = _positions(chosen, x.device)
            within = _positions(chosen[~closed], x.device)
            weight = _rows(gates, images)[:, transform, None, None, None].to(feature.dtype)
            maps = F.relu(_rows(feature, within))
            maps = transformed(maps, transform, self.changes, weight, up_size)
            cell_outputs.append(CellOutput(transform, maps, images))
        return cell_outputs

    def _draw_drop_path(self, x: Tensor) -> None:
        """Draw as :meth:`feature` does, so that the cells that follow draw the same numbers."""
        probability = self._drop_path.probability(self.node.layer, self._num_layers)
        for op in self.ops.values():
            if probability and not isinstance(op, nn.Identity):
                drop_path(x[:, :1, :1, :1], probability)

    def feature(self, x: Tensor, choice: OpChoice | None = None) -> Tensor:
        """Sum of the operations: (n, C, H, W) → the same shape.

        Args:
            x: (n, C, H, W).
            choice: of the operations, where they are chosen; None: their gate decides.
        """
        probability = 0.0
        if self.training:
            probability = self._drop_path.probability(self.node.layer, self._num_layers)
        if self.op_gate is not None:
            return self._chosen(x, choice or self.op_gate(x), probability)
        total: Tensor | None = None
        for op in self.ops.values():
            y = op(x)
            if probability and not isinstance(op, nn.Identity):
                y = drop_path(y, probability)
            total = y if total is None else total + y
        assert total is not None
        return total

    def _chosen(self, x: Tensor, choice: OpChoice, probability: float) -> Tensor:
        """The weighted sum of the operations that each image chose."""
        ops = list(self.ops.values())
        factors: list[Tensor | None] = []
        if probability:
            ones = x.new_ones((len(x), 1, 1, 1))
            for op in ops:
                drops = not isinstance(op, nn.Identity)
                factors.append(drop_path(ones, probability) if drops else None)
        always = self.training and self._waits
        return chosen_sum(ops, x, choice.weights, factors, always=always)


def transformed(
    maps: Tensor,
    transform: int,
    changes: nn.ModuleDict,
    weight: Tensor | float,
    up_size: tuple[int, int] | None,
) -> Tensor:
    """What a transform makes of the ReLU of a cell's sum.

    Args:
        maps: (n, C, H, W).
        transform: ``UP``, ``KEEP`` or ``DOWN``.
        changes: the cell's layers "up" and "down".
        weight: gate value, or (n, 1, 1, 1) gate values.
        up_size: (rows, columns) of the next finer map, for the up transform.
    """
    if transform != KEEP:
        maps = changes[TRANSFORMS[transform]](maps)
    # Weighting before the upsampling is the same and touches a quarter of the numbers.
    maps = maps * weight
    if transform != UP:
        return maps
    return F.interpolate(maps, size=up_size, mode="bilinear", align_corners=False)


def _positions(mask: Tensor, device: torch.device) -> Tensor | None:
    """Positions where a CPU mask holds, on ``device``; None if it holds everywhere."""
    return None if bool(mask.all()) else mask.nonzero().flatten().to(device)


def _rows(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x.index_select(0, positions)
