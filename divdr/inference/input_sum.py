"""The maps that come to one cell, summed in place."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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
        values: m numbers on the host; None where only the device knows them.
        column: the same, (m,) on the device of the maps.
    """

    values: list[float] | None
    column: Tensor

    def scale_(self, maps: Tensor) -> Tensor:
        """Multiply maps (m, C, H, W) in place."""
        return maps.mul_(self.factors(maps))

    def factors(self, maps: Tensor) -> Tensor:
        """(m, 1, 1, 1) in the precision of ``maps``."""
        return self.column.to(maps.dtype).view(-1, 1, 1, 1)

    def of_one(self, position: int, maps: Tensor) -> float | Tensor:
        """That of one image: a number where the host knows it, else one of the device."""
        if self.values is None:
            return self.column[position].to(maps.dtype)
        return self.values[position]


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
        shape: as given.
        like: as given.
    """

    def __init__(self, images: list[int], shape: tuple[int, int, int], like: Tensor) -> None:
        self.images = images
        self._row = {image: row for row, image in enumerate(images)}
        self.shape = shape
        self.like = like
        self._maps: Tensor | None = None
        self._filled: set[int] = set()
        self._constants: dict[Hashable, Tensor] = {}  # for all images, not yet in the memory

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
                value = 1.0 if weights is None else weights.of_one(position, maps)
                self._add_one(maps[position], image, value)

    def add_constant(self, name: Hashable, one: Tensor, images: list[int]) -> None:
        """Add a map that is the same for all of some images, and for every other batch.

        Args:
            name: of the map, by which sums of the same constants are known.
            one: (1, C, H, W), which is not changed.
            images: the images that it is added for, rising.
        """
        if images == self.images:
            self._constants[name] = one
        else:
            self.add(one.expand(len(images), -1, -1, -1), images)

    @property
    def constants(self) -> frozenset[Hashable] | None:
        """Names of the constants that the sum is made of, for all images; None if of other maps."""
        return None if self._filled else frozenset(self._constants)

    def one_constant(self) -> Tensor:
        """(1, C, H, W) of its own, the sum for one image where it is of :attr:`constants` alone."""
        one = InPlaceInputSum([0], self.shape, self.like)
        one._constants = dict(self._constants)
        return one.finish()

    def peek(self) -> Tensor:
        """The sum so far, (n, C, H, W), in its own memory."""
        return self._whole()

    def part(self, images: list[int]) -> InPlaceInputSum:
        """The sum so far of some of ``images``, to go on by itself.

        The memory is shared; parts must not have an image in common, and come before `finish`.
        """
        wanted = set(images)
        members = [image for image in self.images if image in wanted]
        part = InPlaceInputSum(members, self.shape, self.like)
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
        for one in self._constants.values():
            maps.add_(one)
        self._constants = {}
        return maps

    def _add_one(self, one: Tensor, image: int, value: float | Tensor) -> None:
        row = self._memory()[self._row[image]]
        if isinstance(value, Tensor):
            if image in self._filled:
                row.addcmul_(one, value)
            else:
                torch.mul(one, value, out=row)
        elif image in self._filled:
            row.add_(one, alpha=value)
        elif value == 1.0:
            row.copy_(one)
        else:
            torch.mul(one, value, out=row)
        self._filled.add(image)

    def _memory(self) -> Tensor:
        if self._maps is None:
            self._maps = torch.empty(
                (len(self.images), *self.shape),
                dtype=self.like.dtype,
                device=self.like.device,
                memory_format=torch.channels_last,
            )
        return self._maps
