"""Which images of a batch go where from the cells of one layer: decided by gates, or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..routing.gate import open_gates
from ..routing.open_paths import is_closed, is_open, leads_on
from ..routing.space import KEEP, TRANSFORMS, Node, RoutingSpace
from .route import Route


def rows_of(x: Tensor, positions: Sequence[int]) -> Tensor:
    """Rows of (n, …) at rising ``positions``: a view if they lie side by side, else a copy."""
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return x if len(positions) == x.shape[0] else x[first : last + 1]
    return torch.cat([x[i : i + 1] for i in positions])


@dataclass
class Weights:
    """One gate value for each of m images.

    Attributes:
        values: m numbers on the host.
        column: the same, (m,) on the device of the maps.
    """

    values: list[float]
    column: Tensor

    def scale_(self, maps: Tensor) -> Tensor:
        """Multiply maps (m, C, H, W) in place."""
        return maps.mul_(self.factors(maps))

    def factors(self, maps: Tensor) -> Tensor:
        """(m, 1, 1, 1) in the precision of ``maps``."""
        return self.column.to(maps.dtype).view(-1, 1, 1, 1)


class InPlaceInputSum:
    """Weighted sum of the maps that come to one cell, in place.

    It is to plans what ``routing.layer_inputs.InputSum`` is to training, which cannot share it:
    autograd needs the maps that were summed, and which images reach a cell is known only after all
    maps have come. A plan decides first, so that only these images have rows here, and the memory
    of the first map becomes that of the sum.

    Args:
        images: the n images that reach the cell, rising.
        shape: (C, H, W) of their maps.
        like: a tensor of the device and precision to use.

    Attributes:
        images: as given.
        like: as given.
    """

    def __init__(self, images: list[int], shape: tuple[int, int, int], like: Tensor) -> None:
        self.images = images
        self._row = {image: row for row, image in enumerate(images)}
        self._shape = shape
        self.like = like
        self._maps: Tensor | None = None
        self._filled: set[int] = set()

    def add(self, maps: Tensor, images: list[int], weights: Weights | None = None) -> None:
        """Add maps times their weights. The sum may overwrite and keep ``maps``.

        Args:
            maps: (m, C, H, W), memory that is not read afterwards.
            images: the m images they belong to, rising.
            weights: theirs; None for 1.
        """
        if images == self.images and not self._filled:
            # Taken over, not copied: the first map of all images becomes the sum.
            self._maps = maps if weights is None else weights.scale_(maps)
            self._filled = set(images)
        elif images == self.images and len(self._filled) == len(images):
            memory = self._memory()
            if weights is None:
                memory.add_(maps)
            else:
                memory.addcmul_(maps, weights.factors(maps))
        else:
            # Row by row: index_add would need the other rows' memory set to zero before.
            for position, image in enumerate(images):
                value = 1.0 if weights is None else weights.values[position]
                self._add_one(maps[position], image, value)

    def part(self, images: list[int]) -> InPlaceInputSum:
        """The sum so far of some of ``images``, to go on by itself.

        The memory is shared; parts must not have an image in common, and come before `finish`.
        """
        wanted = set(images)
        members = [image for image in self.images if image in wanted]
        part = InPlaceInputSum(members, self._shape, self.like)
        if members:
            maps = rows_of(self._whole(), [self._row[image] for image in members])
            part.add(maps, members)
        return part

    def finish(self) -> Tensor:
        """The sum, (n, C, H, W), zero for an image that nothing came for; then forgets it."""
        maps = self._whole()
        self._maps = None
        return maps

    def _whole(self) -> Tensor:
        maps = self._memory()
        for image in self.images:
            if image not in self._filled:
                maps[self._row[image]].zero_()
                self._filled.add(image)
        return maps

    def _add_one(self, one: Tensor, image: int, value: float) -> None:
        row = self._memory()[self._row[image]]
        if image in self._filled:
            row.add_(one, alpha=value)
        elif value == 1.0:
            row.copy_(one)
        else:
            torch.mul(one, value, out=row)
        self._filled.add(image)

    def _memory(self) -> Tensor:
        if self._maps is None:
            self._maps = torch.empty(
                (len(self.images), *self._shape),
                dtype=self.like.dtype,
                device=self.like.device,
                memory_format=torch.channels_last,
            )
        return self._maps


Rows = list[list[float]]
"""One row [up, keep, down] an image, on the host."""


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
        closed = [is_closed(sum(row)) for row in gates]
        self.passing = [p for p, shut in enumerate(closed) if shut]
        self.active = [p for p, shut in enumerate(closed) if not shut]
        self.opened = {
            t: [p for p in self.active if is_open(gates[p][t], False)] for t in node.transforms
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
    """The decision of a cell without a gate."""
    row = [float(t in node.transforms) for t in range(len(TRANSFORMS))]
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
