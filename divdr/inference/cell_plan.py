"""One cell, made ready to run for the images that open it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..routing.cell import Cell
from ..routing.chosen_ops import chosen_sum
from ..routing.gate import Gate, StaticGate
from ..routing.space import DOWN, KEEP, UP
from .convolution import Chain
from .decision import CellDecision
from .input_sum import InPlaceInputSum, rows_of
from .static_network import StaticCell


class GatePlan:
    """Decides like a ``Gate``; pooling and what follows run in float32 at least.

    Args:
        gate: the gate of the network, in evaluation.
        dtype: precision of the maps.
        packs: see ``Convolution``.
    """

    def __init__(self, gate: Gate, dtype: torch.dtype, *, packs: bool = False) -> None:
        self._gate = gate
        self._reduce = Chain(gate.reduce, dtype, packs=packs)
        self._dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._weight = gate.predict.weight.detach().flatten(1).to(self._dtype)
        self._bias = gate.last_bias.detach().to(self._dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → logits (n, transforms)."""
        x = self._reduce(self._gate.shrunk(x))  # (n, C/2, H', W')
        # Summed in float32: a mean in bfloat16 would move decisions near the threshold.
        logits = F.linear(x.mean((2, 3), dtype=self._dtype), self._weight, self._bias)
        return self._gate.decided(logits)


class StaticGatePlan:
    """Decides like a ``StaticGate``.

    Args:
        gate: the gate of the network.
    """

    def __init__(self, gate: StaticGate) -> None:
        self._logits = gate(gate.bias.new_empty(1)).detach().clone()  # (1, transforms)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) → logits (n, transforms)."""
        return self._logits.expand(len(x), -1)


class CellPlan:
    """What a ``Cell`` computes in evaluation.

    Args:
        cell: the cell of the network, in evaluation.
        dtype: precision of the maps.
        packs: see ``Convolution``.

    Attributes:
        node: place in the routing space.
        channels: channels of its maps.
        gate: decides; None where every transform is open.
        op_gate: chooses operations for each image; None where all are summed.
    """

    def __init__(self, cell: Cell | StaticCell, dtype: torch.dtype, *, packs: bool = False) -> None:
        self.node = cell.node
        self.channels = cell.channels
        self.gate: GatePlan | StaticGatePlan | None = None
        if isinstance(cell.gate, StaticGate):
            self.gate = StaticGatePlan(cell.gate)
        elif cell.gate is not None:
            self.gate = GatePlan(cell.gate, dtype, packs=packs)
        self.op_gate = cell.op_gate
        self._ops = [Chain(op, dtype, packs=packs) for op in cell.ops.values()]
        self._changes = {
            name: Chain(change, dtype, packs=packs) for name, change in cell.changes.items()
        }
        self._residual = self._find_residual()

    def _find_residual(self) -> Chain | None:
        """The operation beside an identity, if that is all and a convolution ends it."""
        others = [op for op in self._ops if not op.is_identity]
        if len(self._ops) == 2 and len(others) == 1 and others[0].tail is not None:
            return others[0]
        return None

    def run(
        self,
        x: Tensor,
        decision: CellDecision,
        targets: list[InPlaceInputSum],
        finer: tuple[int, int] | None,
    ) -> Tensor | None:
        """Bring every image's maps where its gates lead.

        Args:
            x: (n, C, H, W), memory of the cell's own; it is overwritten.
            decision: of the same n images.
            targets: input sums of the next layer by scale.
            finer: (rows, columns) of the next finer map, for the up transform.

        Returns:
            (active, O) weights of the operations for images whose cell is not closed; None where
            there are none or all are summed.
        """
        passing, active = decision.passing, decision.active
        if passing and KEEP in self.node.transforms:
            maps = rows_of(x, passing)  # (m, C, H, W), of the closed images
            targets[self.node.scale].add(maps, decision.images_at(passing))
        if not active:
            return None
        # Passing images' rows may by now be the memory of their target: these are others.
        maps, op_weights = rows_of(x, active), None  # (number of active, C, H, W)
        if self.op_gate is None:
            feature = self._feature(maps)
        else:
            op_weights = self.op_gate(maps).weights
            feature = chosen_sum(self._ops, maps, op_weights).relu_()
        place = {position: row for row, position in enumerate(active)}
        # Keep comes last as it hands the feature's own memory on.
        for transform in (UP, DOWN, KEEP):
            positions = decision.opened.get(transform)
            if not positions:
                continue
            maps = rows_of(feature, [place[p] for p in positions])  # (m, C, H, W)
            weights = decision.weights(transform, positions)
            images = decision.images_at(positions)
            target = targets[self.node.target_scale(transform)]
            if transform == KEEP:
                target.add(maps, images, weights)
            elif transform == DOWN:
                target.add(self._changes["down"](maps), images, weights)
            else:
                maps = self._changes["up"](maps)
                # Scaled before the upsampling: a quarter of the numbers.
                maps = maps if weights is None else weights.scale_(maps)
                maps = F.interpolate(maps, size=finer, mode="bilinear", align_corners=False)
                target.add(maps, images)
        return op_weights

    def _feature(self, x: Tensor) -> Tensor:
        """ReLU of the sum of the operations, memory of the cell's own; ``x`` may be overwritten."""
        if self._residual is not None:
            assert self._residual.tail is not None
            return self._residual.tail.onto(x, self._residual.head(x))
        total, owned = self._ops[0](x), self._ops[0].owns_result
        for op in self._ops[1:]:
            y = op(x)
            if owned:
                total.add_(y)
            elif op.owns_result:
                total, owned = y.add_(total), True
            else:
                total, owned = total + y, True
        return total.relu_() if owned else total.relu()
