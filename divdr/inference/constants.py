"""Cells that no map of any image comes to: what they compute is the same for every batch.

With ``reach="published"`` a cell behind closed transforms alone runs on zeros, and so may cells
behind it. Their gates and maps depend on weights and sizes alone, so that they run once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from .cell_plan import CellPlan
from .decision import CellDecision, from_logits
from .input_sum import InPlaceInputSum

_MOST_BYTES = 256 * 2**20
"""What maps of such cells may take; those that come later run for every batch."""


@dataclass(frozen=True)
class Outcome:
    """What a cell makes of constant maps.

    Attributes:
        name: of the outcome.
        decision: of one image.
        maps: by scale, what leaves the cell for it, (1, C', H', W').
    """

    name: int
    decision: CellDecision
    maps: dict[int, Tensor]

    def decided(self, images: list[int]) -> CellDecision:
        """The decision of as many images as come."""
        one, n = self.decision, len(images)
        return CellDecision(one.node, images, one.gates * n, one.logits * n, None, one.dtype)

    def send(self, images: list[int], targets: Sequence[InPlaceInputSum]) -> None:
        """Bring the maps to the next layer."""
        for scale, one in self.maps.items():
            targets[scale].add_constant((self.name, scale), one, images)


class ConstantMaps:
    """Outcomes that are known, by the size of maps, then by cell and what comes to it."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], dict[Hashable, Outcome]] = {}
        self._bytes: Counter[tuple[int, int, int]] = Counter()
        self._names = count()

    def of(
        self,
        cell: CellPlan,
        input_sum: InPlaceInputSum,
        shapes: Sequence[tuple[int, int, int]],
        finer: tuple[int, int] | None,
    ) -> Outcome | None:
        """What a cell makes of its input sum; None if that is no constant, or memory ends.

        Args:
            cell: whose gates decide.
            input_sum: of images that reach it.
            shapes: (C, H, W) of the network's maps by scale.
            finer: (rows, columns) of the next finer map, for the up transform.
        """
        coming = input_sum.constants
        if coming is None or cell.gate is None or cell.op_gate is not None:
            return None
        size, key = shapes[0], (cell.node, coming, input_sum.like.dtype)
        known = self._known.setdefault(size, {})
        if key not in known:
            if self._bytes.total() > _MOST_BYTES:
                # Those of other sizes go; if there are none, the cell runs as any other.
                if len(self._known) == 1:
                    return None
                self._known = {size: known}
                self._bytes = Counter({size: self._bytes[size]})
            known[key] = self._run(cell, input_sum, shapes, finer)
        return known[key]

    def _run(
        self,
        cell: CellPlan,
        input_sum: InPlaceInputSum,
        shapes: Sequence[tuple[int, int, int]],
        finer: tuple[int, int] | None,
    ) -> Outcome:
        assert cell.gate is not None
        x = input_sum.one_constant()
        decision = from_logits([cell.node], [[0]], [cell.gate(x)])[0]
        targets = [InPlaceInputSum([0], shape, input_sum.like) for shape in shapes]
        cell.run(x, decision, targets, finer)
        maps = {scale: t.finish() for scale, t in enumerate(targets) if t.constants is None}
        memory = sum(one.numel() * one.element_size() for one in maps.values())
        self._bytes[shapes[0]] += memory
        return Outcome(next(self._names), decision, maps)
