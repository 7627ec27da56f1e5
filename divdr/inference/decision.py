"""Which images of a batch go where from the cells of one layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..routing.gate import CLOSED_BELOW, open_gates
from ..routing.space import KEEP, TRANSFORMS, Node
from .arrival import Weights, rows_of

Rows = list[list[float]]
"""One row [up, keep, down] an image, on the host."""


class Decision:
    """The gates of one cell for the n images that reach it.

    Args:
        node: the cell.
        images: the n images, rising.
        gates: n rows [up, keep, down].
        logits: likewise; 0 where there is no such transform or no gate ran.
        columns: gates on the device of the maps by transform, (n,) each; None where all are 1.
        dtype: precision that the gates were decided in.

    Attributes:
        passing: positions among ``images`` whose gates sum below 1e-4.
        active: the other positions.
        opened: by transform, positions that take it.
    """

    def __init__(
        self,
        node: Node,
        images: list[int],
        gates: Rows,
        logits: Rows,
        columns: dict[int, Tensor] | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.node, self.images, self.gates, self.logits = node, images, gates, logits
        self.dtype = dtype
        self._columns = columns
        self.passing = [p for p, row in enumerate(gates) if sum(row) < CLOSED_BELOW]
        self.active = [p for p, row in enumerate(gates) if not sum(row) < CLOSED_BELOW]
        self.opened: dict[int, list[int]] = {t: [] for t in range(len(TRANSFORMS))}
        for transform in node.transforms:
            self.opened[transform] = [p for p in self.active if gates[p][transform] > 0]

    def images_at(self, positions: Sequence[int]) -> list[int]:
        """The images at positions."""
        return [self.images[p] for p in positions]

    def leads(self, transform: int, published: bool) -> list[int]:
        """Images for which the transform leads on; ``published`` is the network's reach."""
        if transform not in self.node.transforms:
            return []
        going = self.active if published else self.opened[transform]
        return self.images_at([*going, *self.passing] if transform == KEEP else going)

    def weights(self, transform: int, positions: list[int]) -> Weights | None:
        """Gate values at positions; None for 1 everywhere."""
        if self._columns is None:
            return None
        values = [self.gates[p][transform] for p in positions]
        return Weights(values, rows_of(self._columns[transform], positions))


def all_open(node: Node, images: list[int]) -> Decision:
    """The decision of a cell without a gate."""
    row = [float(t in node.transforms) for t in range(len(TRANSFORMS))]
    return Decision(node, images, [row] * len(images), [row] * len(images), None)


def from_logits(
    nodes: Sequence[Node], images: Sequence[list[int]], logits: Sequence[Tensor]
) -> list[Decision]:
    """Decisions of several cells, fetched from the device at once.

    Args:
        nodes: the cells.
        images: of each cell, the n images that reach it.
        logits: of each cell, (n, transforms) on the device.
    """
    if not nodes:
        return []
    flat = torch.cat([one.flatten() for one in logits])
    gates = open_gates(flat)
    fetched = torch.stack([flat, gates]).tolist()  # the only wait for the device in a layer
    decisions, start = [], 0
    for node, members, one in zip(nodes, images, logits, strict=True):
        stop = start + one.numel()
        host = [_rows(numbers[start:stop], node) for numbers in fetched]
        table = gates[start:stop].view(one.shape)
        columns = {t: table[:, i] for i, t in enumerate(node.transforms)}
        decisions.append(Decision(node, members, host[1], host[0], columns, flat.dtype))
        start = stop
    return decisions


def _rows(numbers: list[float], node: Node) -> Rows:
    """Numbers of a cell's own transforms, image by image, as rows [up, keep, down]."""
    rows = []
    for start in range(0, len(numbers), len(node.transforms)):
        row = [0.0] * len(TRANSFORMS)
        for offset, transform in enumerate(node.transforms):
            row[transform] = numbers[start + offset]
        rows.append(row)
    return rows
