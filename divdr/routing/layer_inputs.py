"""The input sums of a layer's cells, image by image, from what left the layer before."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .batch_norm import tie
from .cell import CellResult
from .space import TRANSFORMS, Node


class InputSum:
    """Sum of the maps that come to one cell, and which images reach it.

    Every image has a row, and no map is written into, for autograd's sake; plans sum in place
    (``inference.input_sum.InPlaceInputSum``).

    Args:
        count: N.
        template: a tensor of the device and precision to use.

    Attributes:
        reached: (N,) bool.
    """

    def __init__(self, count: int, template: Tensor) -> None:
        self._template = template
        self._sum: Tensor | None = None
        self._count = count
        self.reached = torch.zeros(count, dtype=torch.bool, device=template.device)

    def add(self, maps: Tensor, images: Tensor | None) -> None:
        """Add maps (m, C, H, W) that belong to ``images`` (m,), None for all."""
        if images is None:
            self._sum = maps if self._sum is None else self._sum + maps
            return
        if self._sum is None:
            self._sum = maps.new_zeros(self._count, *maps.shape[1:])
        self._sum = self._sum.index_add(0, images, maps.to(self._sum.dtype))

    def map(self, channels: int, size: tuple[int, int]) -> Tensor:
        """The sum, (N, C, H, W); zeros where nothing came."""
        if self._sum is None:
            return self._template.new_zeros(self._count, channels, *size)
        return self._sum

    @property
    def total(self) -> Tensor | None:
        """The sum, (N, C, H, W), None where nothing came."""
        return self._sum


class LayerInputs:
    """Moves the maps of a batch from layer to layer.

    Args:
        count: N.
        template: a tensor of the device and precision to use.

    Attributes:
        blank_gates: (N, T) zeros, the gates of a cell that no image reaches.
    """

    def __init__(self, count: int, template: Tensor) -> None:
        self._count = count
        self._template = template
        self._left_out: list[Tensor] = []
        self.blank_gates = torch.zeros(count, len(TRANSFORMS), device=template.device)

    def input_sums(self, scales: int) -> list[InputSum]:
        """Empty sums for a layer of ``scales`` cells."""
        return [InputSum(self._count, self._template) for _ in range(scales)]

    def send(
        self, result: CellResult, node: Node, images: Tensor | None, targets: list[InputSum]
    ) -> None:
        """Bring what left the cell at ``node`` to the next layer; it ran ``images``."""
        for cell_output in result.cell_outputs:
            target = targets[node.target_scale(cell_output.transform)]
            target.add(cell_output.maps, _compose(images, cell_output.images))
        leads = to_batch_rows(result.leads, images, self._count)  # (N, T)
        for transform in node.transforms:
            targets[node.target_scale(transform)].reached |= leads[:, transform]

    def leave_out(self, layers: Iterable[nn.Module], input_sum: InputSum | None = None) -> None:
        """Note layers that training skips, and what came to a cell that no image reaches."""
        # Distributed training waits for a gradient of every parameter, even one of zero.
        for layer in layers:
            self._left_out.extend(p.sum() * 0.0 for p in layer.parameters() if p.requires_grad)
        if input_sum is not None and input_sum.total is not None:
            self._left_out.append(input_sum.total.sum() * 0.0)

    def tie(self, outputs: list[Tensor]) -> list[Tensor]:
        """Tie everything left out to the outputs with weight zero."""
        return tie(outputs, self._left_out)


def _compose(outer: Tensor | None, inner: Tensor | None) -> Tensor | None:
    if outer is None or inner is None:
        return inner if outer is None else outer
    return outer.index_select(0, inner)


def to_batch_rows(rows: Tensor, images: Tensor | None, count: int) -> Tensor:
    """Rows (n, T) of some images → (N, T), zero or False for the others."""
    if images is None:
        return rows
    return rows.new_zeros(count, rows.shape[1]).index_copy(0, images, rows)
