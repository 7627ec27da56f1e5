"""The input sums of a layer's cells, image by image, from what left the layer before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .batch_norm import tie
from .cell import Cell, CellResult
from .weighted_sum import Part, weighted_sum


class Visit:
    """The images that reach a cell, and what its gates say of them; to run it comes later.

    Args:
        cell: the cell.
        maps: (N, C, H, W) its inputs, of the whole batch.
        images: (n,) positions of the images that reach it, perhaps none; None for all.
        imposed: (N, T) gate values to use in place of the gate's own.

    Attributes:
        cell: as given.
        images: as given.
        decision: of the n images.
    """

    def __init__(
        self, cell: Cell, maps: Tensor, images: Tensor | None, imposed: Tensor | None = None
    ) -> None:
        self.cell = cell
        self.images = images
        if images is not None:
            maps = maps.index_select(0, images)
            imposed = None if imposed is None else imposed.index_select(0, images)
        if not len(maps):
            # Normalisation sends statistics of half precision maps in float32, of which an empty
            # map must not send a half.
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        self._maps = maps
        with self._precision():
            self.decision = cell.judge(maps, imposed)

    def questions(self) -> list[Tensor]:
        """What :meth:`run` has to know on the host, see ``Cell.questions``."""
        return self.cell.questions(self.decision)

    def run(self, answers: Sequence[Tensor]) -> CellResult:
        """Run the cell, given the answers to the questions."""
        with self._precision():
            return self.cell(self._maps, self.decision, answers)

    def _precision(self) -> AbstractContextManager:
        return (
            nullcontext()
            if len(self._maps)
            else torch.autocast(self._maps.device.type, enabled=False)
        )


class InputSum:
    """What comes to one cell; every image has a row.

    No map is written into, for autograd's sake; plans sum in place
    (``inference.input_sum.InPlaceInputSum``).

    Args:
        template: (N, …), of the batch, and of the device and precision to use.

    Attributes:
        parts: what came so far.
    """

    def __init__(self, template: Tensor) -> None:
        self._template = template
        self.parts: list[Part] = []

    def map(self, channels: int, size: tuple[int, int]) -> Tensor:
        """The sum, (N, C, H, W); zeros where nothing came."""
        count = len(self._template)
        if not self.parts:
            return self._template.new_zeros(count, channels, *size)
        return weighted_sum(self.parts, count, size)


class LayerInputs:
    """Moves the maps of a batch from layer to layer.

    Args:
        template: (N, …), of the batch, and of the device and precision to use.
    """

    def __init__(self, template: Tensor) -> None:
        self._template = template
        self._left_out: list[Tensor] = []

    def reach(self, visits: Sequence[Visit | None], scales: int) -> tuple[list[InputSum], Tensor]:
        """Empty sums of the next layer's cells, and whom the gates let reach them.

        Args:
            visits: of this layer.
            scales: cells of the next.

        Returns:
            ``scales`` sums, and (scales, N) bool.
        """
        count = len(self._template)
        masks = torch.zeros(scales, count, dtype=torch.bool, device=self._template.device)
        for visit in visits:
            if visit is None:
                continue
            leads = to_batch_rows(visit.decision.leads, visit.images, count)  # (N, T)
            for transform in visit.cell.node.transforms:
                masks[visit.cell.node.target_scale(transform)] |= leads[:, transform]
        return [InputSum(self._template) for _ in range(scales)], masks

    def send(self, visit: Visit, result: CellResult, targets: Sequence[InputSum]) -> None:
        """Bring what left a cell to the next layer, and note what training left out."""
        for cell_output in result.cell_outputs:
            part = cell_output.part
            target = targets[visit.cell.node.target_scale(cell_output.transform)]
            target.parts.append(part._replace(images=_compose(visit.images, part.images)))
        self.leave_out(result.skipped)

    def leave_out(self, layers: Iterable[nn.Module], input_sum: InputSum | None = None) -> None:
        """Note layers that training skips, and what came to a cell that no image reaches."""
        # Distributed training waits for a gradient of every parameter, even one of zero.
        for layer in layers:
            self._left_out.extend(p.sum() * 0.0 for p in layer.parameters() if p.requires_grad)
        if input_sum is not None:
            # A number of each map leads back as far as all of them would.
            self._left_out.extend(p.maps[:1, :1, :1, :1].sum() * 0.0 for p in input_sum.parts)

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
