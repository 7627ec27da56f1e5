"""Which images of a batch go where from the cells of one layer: decided by gates, or given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..routing.gate import open_gates
from ..routing.open_paths import is_closed, is_open, leads_on
from ..routing.space import KEEP, TRANSFORMS, Node, RoutingSpace
from .input_sum import Weights, rows_of
from .route import Route

Rows = list[list[float]]
"""One row [up, keep, down] an image, on the host."""


Openness = tuple[int, ...] | None
"""What one image's gates of a cell open: transforms, rising; None where the cell is closed."""


def openness(row: Sequence[float], node: Node) -> Openness:
    """What gates [up, keep, down] of a cell open."""
    if is_closed(sum(row)):
        return None
    return tuple(t for t in node.transforms if is_open(row[t], False))


class CellDecision:
    """The gates of one cell for the n images that reach it.

    Args:
        node: the cell.
        images: the n images, rising.
        gates: n rows [up, keep, down].
        logits: likewise; 0 where there is no such transform or no gate ran.
        columns: gates on the device of the maps by transform, (n,) each; None where all are 1.
        dtype: precision that the gates were decided in.

    Attributes:
        passing: positions among ``images`` for which the cell is closed.
        active: the other positions.
        opened: by transform, positions that run it.
        openness: the same for each image.
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
        self._place([openness(row, node) for row in gates])

    def _place(self, each: Sequence[Openness]) -> None:
        """Note which of the images pass, and which run what."""
        self.openness = list(each)
        self.passing = [p for p, opened in enumerate(each) if opened is None]
        self.active = [p for p, opened in enumerate(each) if opened is not None]
        self.opened = {
            t: [p for p in self.active if t in (each[p] or ())] for t in self.node.transforms
        }

    def images_at(self, positions: Sequence[int]) -> list[int]:
        """The images at positions."""
        return [self.images[p] for p in positions]

    def leads(self, transform: int, reach: str) -> list[int]:
        """Images that the transform, one of the node's, makes reach another cell."""
        is_keep = transform == KEEP
        # Asked for each kind of image and not for each image, as plans come here for every cell.
        whole = leads_on(False, False, is_keep, reach)  # even where the transform does not run
        going = self.active if whole else self.opened[transform]
        if self.passing and leads_on(False, True, is_keep, reach):
            going = [*going, *self.passing]
        return self.images_at(going)

    def weights(self, transform: int, positions: list[int]) -> Weights | None:
        """Gate values at positions; None for 1 everywhere."""
        if self._columns is None:
            return None
        values = [self.gates[p][transform] for p in positions]
        return Weights(values, rows_of(self._columns[transform], positions))


def all_open(node: Node, images: list[int]) -> CellDecision:
    """The decision of a cell without a gate; a bare one is closed."""
    row = [float(t in node.gated) for t in range(len(TRANSFORMS))]
    return CellDecision(node, images, [row] * len(images), [row] * len(images), None)


def from_logits(
    nodes: Sequence[Node], images: Sequence[list[int]], logits: Sequence[Tensor]
) -> list[CellDecision]:
    """Decisions of several cells, fetched from the device at once.

    Args:
        nodes: the cells.
        images: of each cell, the n images that reach it.
        logits: of each cell, (n, transforms) on the device.
    """
    if not nodes:
        return []
    flat = torch.cat([one.flatten() for one in logits])  # of all cells, images and transforms
    gates = open_gates(flat)
    fetched = torch.stack([flat, gates]).tolist()  # the only wait for the device in a layer
    decisions, start = [], 0
    for node, members, one in zip(nodes, images, logits, strict=True):
        stop = start + one.numel()
        host = [_rows(numbers[start:stop], node) for numbers in fetched]  # logits, gates: n × T
        table = gates[start:stop].view(one.shape)  # (n, transforms of the node), on the device
        columns = {t: table[:, i] for i, t in enumerate(node.transforms)}
        decisions.append(CellDecision(node, members, host[1], host[0], columns, flat.dtype))
        start = stop
    return decisions


class AssumedDecision(CellDecision):
    """What the gates of one cell are taken to open, before the host knows their values.

    Args:
        node: the cell.
        images: the n images, rising.
        assumed: what each of them is taken to open.
        logits: (n, transforms) on the device.

    Attributes:
        numbers: (2, n · transforms) logits and gates on the device, for :meth:`settled`.
    """

    def __init__(
        self, node: Node, images: list[int], assumed: Sequence[Openness], logits: Tensor
    ) -> None:
        self.node, self.images, self.dtype = node, images, logits.dtype
        self.gates, self.logits = [], []
        gates = open_gates(logits)
        self._columns = {t: gates[:, i] for i, t in enumerate(node.transforms)}
        self._place(assumed)
        self.numbers = torch.stack([logits.flatten(), gates.flatten()])

    def weights(self, transform: int, positions: list[int]) -> Weights | None:
        """Gate values at positions, known on the device alone."""
        assert self._columns is not None
        return Weights(None, rows_of(self._columns[transform], positions))

    def settled(self, numbers: Sequence[list[float]]) -> CellDecision:
        """What the gates really decided, by ``numbers`` on the host."""
        logits, gates = (_rows(each, self.node) for each in numbers)
        return CellDecision(self.node, self.images, gates, logits, None, self.dtype)


def _rows(numbers: list[float], node: Node) -> Rows:
    """Numbers of a cell's own transforms, image by image, as rows [up, keep, down]."""
    rows = []
    for start in range(0, len(numbers), len(node.transforms)):
        row = [0.0] * len(TRANSFORMS)
        for offset, transform in enumerate(node.transforms):
            row[transform] = numbers[start + offset]
        rows.append(row)
    return rows


class ImposedRoute:
    """Gate values of N images, fetched once.

    Args:
        route: (N, D), or (1, D), (D,) or a ``Route`` for all images.
        space: the routing space.
        x: (N, C, H, W), the images.

    Attributes:
        decides_initial: whether it holds the gates of the initial cell as well.

    Raises:
        ValueError: the route has another shape.
    """

    def __init__(self, route: Tensor | Route, space: RoutingSpace, x: Tensor) -> None:
        count, size = len(x), space.activation_size
        self.decides_initial = isinstance(route, Route)
        self._initial = torch.zeros(1, len(TRANSFORMS))
        if isinstance(route, Route):
            self._initial, route = route.initial[None], route.activations
        if tuple(route.shape) not in {(size,), (1, size), (count, size)}:
            raise ValueError(
                f"a route for {count} images is ({count}, {size}), (1, {size}) or ({size},) here, "
                f"not {tuple(route.shape)}"
            )
        table = route.detach().view(-1, space.num_cells, len(TRANSFORMS))
        # (N or 1, 1 + cells, T): the initial cell comes first.
        table = torch.cat([self._initial.to(table).expand(len(table), 1, -1), table], dim=1)
        self._device = table.to(x.device).expand(count, -1, -1)
        self._host = table.expand(count, -1, -1).tolist()

    def at(self, node: Node, images: list[int]) -> CellDecision | None:
        """The decision of a cell for its images; None where its gate decides."""
        if node.index < 0 and not self.decides_initial:
            return None
        place = node.index + 1
        gates = [self._host[image][place] for image in images]
        table = rows_of(self._device[:, place], images)  # (n, T)
        columns = {t: table[:, t] for t in node.transforms}
        nothing = [[0.0] * len(TRANSFORMS)] * len(images)
        return CellDecision(node, images, gates, nothing, columns, table.dtype)
