"""Maps that come to one cell, for the images that reach it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


class Arrival:
    """Weighted sum of maps, one row an image, merged in place.

    Args:
        images: the images that reach the cell, rising.
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
        """Add maps times their weights. The arrival may overwrite and keep ``maps``.

        Args:
            maps: (m, C, H, W), memory that nobody will look at afterwards.
            images: the m images they belong to, rising.
            weights: theirs; None for 1.
        """
        if images == self.images and not self._filled:
            self._maps = maps if weights is None else weights.scale_(maps)
            self._filled = set(images)
        elif images == self.images and len(self._filled) == len(images):
            memory = self._memory()
            if weights is None:
                memory.add_(maps)
            else:
                memory.addcmul_(maps, weights.factors(maps))
        else:
            for position, image in enumerate(images):
                value = 1.0 if weights is None else weights.values[position]
                self._add_one(maps[position], image, value)

    def part(self, images: list[int]) -> Arrival:
        """What has arrived for some of ``images``, to go on on its own.

        The memory is shared; parts must not have an image in common, and come before `finish`.
        """
        members = [image for image in self.images if image in set(images)]
        part = Arrival(members, self._shape, self.like)
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
