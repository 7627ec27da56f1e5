"""One cell of the routing space: operations, a gate, and the transforms that lead onwards.

Li et al. (CVPR 2020), Section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .batch_norm import is_synchronised
from .chosen_ops import OpChoice, OpGateBuilder, chosen_sum
from .gate import GateOptions, build_gate, open_gates
from .open_paths import is_closed, is_open, leads_on
from .ops import DropPathSchedule, NormFactory, build_op, conv_norm, drop_path
from .space import DOWN, KEEP, TRANSFORMS, UP, Node
from .transfer import to_device
from .weighted_sum import Part


@dataclass
class CellOutput:
    """Maps that leave a cell along one transform.

    Attributes:
        transform: ``UP``, ``KEEP`` or ``DOWN``.
        part: (m, C', H', W') maps, their gate values, and the positions of these images among the
            cell's inputs; those of "up" still have the size of the cell's own maps.
    """

    transform: int
    part: Part


@dataclass
class GateDecision:
    """What the gates of a cell say of n images that reach it, on the device.

    Attributes:
        logits: (n, T) [up, keep, down] before ReLU(tanh(·)); 0 where there is no such transform.
        gates: (n, T) gate values.
        closed: (n,) bool, the cell computes nothing.
        opened: (n, T) bool, transforms that run.
        leads: (n, T) bool, open paths, see ``leads_on``; without meaning where there is no such
            transform.
        choice: operations chosen for each image; None where all are summed.
    """

    logits: Tensor
    gates: Tensor
    closed: Tensor
    opened: Tensor
    leads: Tensor
    choice: OpChoice | None = None


@dataclass
class CellResult:
    """What a cell did with n images that reached it.

    Attributes:
        cell_outputs: the maps that go on.
        skipped: layers that training left out.
    """

    cell_outputs: list[CellOutput]
    skipped: list[nn.Module] = field(default_factory=list)


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
        gate: as of the network; of kind "none" every transform is open at 1.
        norm: makes the normalisation layer.
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
        gate: GateOptions,
        norm: NormFactory,
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
        built = ops if node.gated else ()
        self.ops = nn.ModuleDict({name: build_op(name, width, norm) for name in built})
        self.changes = nn.ModuleDict()
        if UP in node.gated:
            self.changes["up"] = conv_norm(width, width // 2, norm)
        if DOWN in node.gated:
            self.changes["down"] = conv_norm(width, width * 2, norm, stride=2)
        kind = gate.kind if node.gated else "none"
        kind = "static" if node.constant and kind != "none" else kind
        self.gate = build_gate(width, len(node.gated), norm, replace(gate, kind=kind))
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
        columns = torch.tensor(node.gated, dtype=torch.long)
        self.register_buffer("_columns", columns, persistent=False)
        self._is_keep: Tensor
        is_keep = torch.tensor([t == KEEP for t in range(len(TRANSFORMS))])
        self.register_buffer("_is_keep", is_keep, persistent=False)

    def judge(self, x: Tensor, imposed: Tensor | None = None) -> GateDecision:
        """What the gates say of images that reach the cell; it computes nothing else yet.

        Args:
            x: (n, C·2^scale, H, W).
            imposed: (n, T) gate values to use in place of the gate's own.
        """
        logits, gates = self.decide(x)
        if imposed is not None:
            gates = imposed
        closed = is_closed(gates.sum(dim=1))  # (n,)
        opened = is_open(gates, closed[:, None])  # (n, T)
        leads = leads_on(opened, closed[:, None], self._is_keep, self.reach)
        choice = None if self.op_gate is None else self.op_gate(x)
        return GateDecision(logits, gates, closed, opened, leads, choice)

    def questions(self, decision: GateDecision) -> list[Tensor]:
        """What :meth:`forward` has to know on the host, bool tensors of any shape.

        One copy brings those of all cells of a layer, as each copy is a wait for the device.
        """
        if self.training:
            some = (decision.gates > 0).any(dim=0)  # (T,)
            asked = [some, decision.closed.any()]
        else:
            asked = [decision.opened, decision.closed]
        if decision.choice is not None:
            asked.append(decision.choice.weights.detach() > 0)
        return asked

    def forward(self, x: Tensor, decision: GateDecision, answers: Sequence[Tensor]) -> CellResult:
        """Run the cell for images that reach it.

        Args:
            x: (n, C·2^scale, H, W).
            decision: what :meth:`judge` made of them.
            answers: what :meth:`questions` asked, on the host. Training does without, unless
                operations are chosen: it then runs what it might have left out.
        """
        chosen = answers[2] if decision.choice is not None else None
        if not self.training:
            return CellResult(self._run_open(x, decision, answers[0], answers[1], chosen))
        some, any_closed = [True] * len(TRANSFORMS), True
        if answers:
            some, any_closed = answers[0].tolist(), bool(answers[1])
        needed = self._needed(some)
        cell_outputs = self._run_needed(x, decision, any_closed, needed, chosen)
        return CellResult(cell_outputs, self._others(needed, chosen))

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

    def _needed(self, some: Sequence[bool]) -> Sequence[int]:
        """Transforms to train; none where the cell is closed for every image."""
        if self.node.bare:
            return ()
        if not self._conditional:
            return self.node.transforms
        if not any(some):
            return ()
        # Keep costs next to nothing, and images that pass on take it.
        return [t for t in self.node.transforms if some[t] or t == KEEP]

    def _others(self, needed: Sequence[int], chosen: Tensor | None) -> list[nn.Module]:
        """Layers that run for none of the ``needed`` transforms, or that no image chose."""
        others = [m for name, m in self.changes.items() if TRANSFORMS.index(name) not in needed]
        if not needed:
            others += self.ops.values()
            return others if self.op_gate is None else [*others, self.op_gate]
        if chosen is not None:
            ran = chosen.any(dim=0).tolist()
            others += [op for op, runs in zip(self.ops.values(), ran, strict=True) if not runs]
        return others

    def _run_needed(
        self,
        x: Tensor,
        decision: GateDecision,
        any_closed: bool,
        needed: Sequence[int],
        chosen: Tensor | None,
    ) -> list[CellOutput]:
        if not needed:
            self._draw_drop_path(x)
            return [CellOutput(KEEP, Part(x))] if KEEP in self.node.transforms else []
        feature = self.feature(x, decision.choice, chosen)
        cell_outputs = []
        for transform in needed:
            weight = decision.gates[:, transform]
            if transform == KEEP and any_closed:
                closed = decision.closed
                cell_outputs.append(CellOutput(KEEP, Part(x, closed.to(weight.dtype))))
                weight = torch.where(closed, 0.0, weight)
            maps = transformed(feature, transform, self.changes)
            cell_outputs.append(CellOutput(transform, Part(maps, weight)))
        return cell_outputs

    def _run_open(
        self,
        x: Tensor,
        decision: GateDecision,
        opened: Tensor,
        closed: Tensor,
        chosen: Tensor | None,
    ) -> list[CellOutput]:
        cell_outputs = []
        passing = _positions(closed, x.device)
        if KEEP in self.node.transforms and (passing is None or len(passing)):
            cell_outputs.append(CellOutput(KEEP, Part(_rows(x, passing), None, passing)))
        active = _positions(~closed, x.device)
        if active is not None and not len(active):
            return cell_outputs
        choice = decision.choice
        if choice is not None and chosen is not None:
            choice = OpChoice(*(_rows(part, active) for part in choice))
            chosen = chosen[~closed]
        feature = self.feature(_rows(x, active), choice, chosen)
        for transform in self.node.transforms:
            running = opened[:, transform]
            if not running.any():
                continue
            images = _positions(running, x.device)
            within = _positions(running[~closed], x.device)
            weight = _rows(decision.gates, images)[:, transform]
            maps = transformed(_rows(feature, within), transform, self.changes)
            cell_outputs.append(CellOutput(transform, Part(maps, weight, images)))
        return cell_outputs

    def _draw_drop_path(self, x: Tensor) -> None:
        """Draw as :meth:`op_sum` does, so that the cells that follow draw the same numbers."""
        probability = self._drop_path.probability(self.node.layer, self._num_layers)
        for op in self.ops.values():
            if probability and not isinstance(op, nn.Identity):
                drop_path(x[:, :1, :1, :1], probability)

    def feature(
        self, x: Tensor, choice: OpChoice | None = None, chosen: Tensor | None = None
    ) -> Tensor:
        """ReLU of :meth:`op_sum`, in its memory where that is the cell's own."""
        total = self.op_sum(x, choice, chosen)
        # Of one operation the sum is its result, which its backward pass may look at.
        return F.relu(total, inplace=self.op_gate is None and len(self.ops) > 1)

    def op_sum(
        self, x: Tensor, choice: OpChoice | None = None, chosen: Tensor | None = None
    ) -> Tensor:
        """Sum of the operations: (n, C, H, W) → the same shape.

        Args:
            x: (n, C, H, W).
            choice: of the operations, where they are chosen; None: their gate decides.
            chosen: (n, O) bool on the host, where the choice is above 0; None asks the device.
        """
        probability = 0.0
        if self.training:
            probability = self._drop_path.probability(self.node.layer, self._num_layers)
        if self.op_gate is not None:
            return self._chosen(x, choice or self.op_gate(x), chosen, probability)
        total: Tensor | None = None
        for op in self.ops.values():
            y = op(x)
            if probability and not isinstance(op, nn.Identity):
                y = drop_path(y, probability)
            total = y if total is None else total + y
        assert total is not None
        return total

    def _chosen(
        self, x: Tensor, choice: OpChoice, chosen: Tensor | None, probability: float
    ) -> Tensor:
        """The weighted sum of the operations that each image chose."""
        ops = list(self.ops.values())
        factors: list[Tensor | None] = []
        if probability:
            ones = x.new_ones((len(x), 1, 1, 1))
            for op in ops:
                drops = not isinstance(op, nn.Identity)
                factors.append(drop_path(ones, probability) if drops else None)
        always = self.training and self._waits
        return chosen_sum(ops, x, choice.weights, factors, chosen=chosen, always=always)


def transformed(feature: Tensor, transform: int, changes: nn.ModuleDict) -> Tensor:
    """What a transform makes of a cell's feature, before its gate weights and "up" resizes it.

    Args:
        feature: (n, C, H, W), after ReLU.
        transform: ``UP``, ``KEEP`` or ``DOWN``.
        changes: the cell's layers "up" and "down".
    """
    return feature if transform == KEEP else changes[TRANSFORMS[transform]](feature)


def _positions(mask: Tensor, device: torch.device) -> Tensor | None:
    """Positions where a CPU mask holds, on ``device``; None if it holds everywhere."""
    return None if bool(mask.all()) else to_device(mask.nonzero().flatten(), device)


def _rows(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x.index_select(0, positions)
