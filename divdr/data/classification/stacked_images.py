"""Whole batches of images that lie in memory, of one size and with nothing to resize.

Small images cost less than what is done with each: reading it back from bytes, PIL, a dict, seeds
of three generators. Here a batch is a handful of operations on tensors, and its random numbers are
a function of the seed and the images' positions in the stream, so that neither workers nor resumed
runs change them.

N images, C channels, H rows, W columns, B images a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Augmentation(NamedTuple):
    """Mirrors, shifts and cuts a square out, as one's random numbers say.

    Attributes:
        flip: mirror every second image.
        pad_crop: pixels to pad on every side (black) before the old size is cropped anywhere.
        cutout: length of the square that is filled with the mean colour; its centre is any pixel.
        fill: (C, 1, 1) mean colour.
    """

    flip: bool
    pad_crop: int
    cutout: int
    fill: Tensor

    def ends(self, height: int, width: int) -> list[int]:
        """What an image's random numbers are below, in their order: each is a whole one from 0."""
        ends = [2] if self.flip else []
        ends += 2 * [2 * self.pad_crop + 1] if self.pad_crop else []
        return [*ends, height, width] if self.cutout else ends

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """(B, C, H, W) float from images of this shape and their random numbers (B, …), see
        :meth:`ends`. Bytes are the faster images.
        """
        height, width = images.shape[2:]
        columns = iter(numbers.unbind(1))
        rows = torch.arange(len(images))
        if self.flip:
            rows = rows + next(columns) * len(images)  # the second half is mirrored
            images = torch.cat([images, images.flip(3)])
        if self.pad_crop:
            padded = F.pad(images, 4 * [self.pad_crop])
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, top, left, H, W)
            images = windows[rows, :, next(columns), next(columns)]
        elif self.flip:
            images = images.index_select(0, rows)
        if self.cutout:
            inside_rows = _inside(next(columns) - self.cutout // 2, self.cutout, height)
            inside_columns = _inside(next(columns) - self.cutout // 2, self.cutout, width)
            inside = inside_rows[:, None, :, None] & inside_columns[:, None, None]
            images = torch.where(inside, self.fill, images.float())
        return images.float()


def _inside(start: Tensor, length: int, end: int) -> Tensor:
    """(B, end) whether a place is one of ``length`` from each start (B,) on."""
    after = torch.arange(end) - start[:, None]
    return (after >= 0) & (after < length)


def random_numbers(seed: int, positions: Sequence[int], ends: Sequence[int]) -> Tensor:
    """(B, len(ends)) int64 numbers from 0 and below their ends, by seed and position alone.

    They are numbers B·i to B·i + B − 1 of SplitMix64 (Steele, Lea and Flood, 2014) for position i
    and B = len(ends), scaled to [0, end): a probability is off by less than end / 2^32.

    Args:
        seed: any integer from 0.
        positions: of images in the stream, from 0.
        ends: each from 1 to 2^31.
    """
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    place = np.array(positions, np.uint64)[:, None] * np.uint64(len(ends))
    found = split_mix_64(start, place + np.arange(len(ends), dtype=np.uint64))
    upper = (found >> np.uint64(32)) * np.array(ends, np.uint64)
    return torch.from_numpy((upper >> np.uint64(32)).astype(np.int64))


def split_mix_64(start: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Numbers (uint64) at these places, from 0, of the SplitMix64 generator that starts there."""
    z = start + (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class StackedImages(NamedTuple):
    """Images of a data set in one tensor.

    Attributes:
        records: what a model's input says of each but its "image".
        pixels: (N, H, W, C) uint8.
        channels: which of C a model's image has, in its order; grey ones can be repeated.
    """

    records: list[dict[str, Any]]
    pixels: Tensor
    channels: list[int]

    @classmethod
    def of(
        cls, records: Sequence[dict[str, Any]], pixels: Sequence[Any], image_format: str, size: int
    ) -> StackedImages | None:
        """None where an image is no array, they differ in shape, or something would change them.

        Args:
            records: what a model's input says of each; its height and width are added.
            pixels: (H, W) or (H, W, 3) uint8 of each in RGB, or what is none.
            image_format: that the model wants, "L", "RGB" or "BGR".
            size: of its images; 0 leaves them as they are.
        """
        if not all(isinstance(each, np.ndarray) and each.dtype == np.uint8 for each in pixels):
            return None
        shapes = {each.shape for each in pixels}
        if len(shapes) != 1:
            return None
        height, width, *rest = shapes.pop()
        if size and not height == width == size:
            return None
        if rest:
            orders = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}
        else:
            orders = {"L": [0], "RGB": [0, 0, 0], "BGR": [0, 0, 0]}
        if rest not in ([], [3]) or image_format not in orders:
            return None
        stacked = torch.from_numpy(np.stack(pixels)).view(len(pixels), height, width, -1)
        shape = {"height": height, "width": width}
        return cls([{**each, **shape} for each in records], stacked, orders[image_format])

    def images(self, rows: Sequence[int]) -> Tensor:
        """(B, C, H, W) uint8."""
        chosen = self.pixels.index_select(0, torch.as_tensor(rows)).permute(0, 3, 1, 2)
        return chosen if len(self.channels) == chosen.shape[1] == 1 else chosen[:, self.channels]

    def dicts(self, rows: Sequence[int], images: Tensor) -> list[dict[str, Any]]:
        """A model's inputs: the records of these rows, each with its "image" of (B, C, H, W)."""
        found = [self.records[row].copy() for row in rows]
        for item, image in zip(found, images.unbind(), strict=True):
            item["image"] = image
        return found


class StackedBatches(Dataset):
    """Gives a loader whole batches: (rows, images (B, C, H, W)).

    Args:
        images: the data set's.
        augmentation: None leaves images as they are, and indices are rows.
        seed: of the augmentation. Its indices are pairs of the position in the stream and the row.
        keys: of the images (``divdr.image_keys``); None: not known.
    """

    def __init__(
        self,
        images: StackedImages,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        keys: list[str] | None = None,
    ) -> None:
        self.images = images
        self.keys = keys
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self.images.records)

    def __getitems__(self, indices: Sequence[Any]) -> tuple[list[int], Tensor]:
        if self._augmentation is None:
            return list(indices), self.images.images(indices).float()
        rows = [row for _, row in indices]
        found = self.images.images(rows)
        ends = self._augmentation.ends(*found.shape[2:])
        numbers = random_numbers(self._seed, [position for position, _ in indices], ends)
        return rows, self._augmentation(found, numbers)


class StackedLoader(DataLoader):
    """A loader over :class:`StackedBatches` that yields a model's inputs, lists of dicts.

    A batch comes from a worker as one tensor, and is taken apart here.
    """

    dataset: StackedBatches

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        for rows, images in super().__iter__():
            yield self.dataset.images.dicts(rows, images)


def as_they_come(batch: Any) -> Any:
    """A batch as the data set gave it, for loaders that would stack it otherwise."""
    return batch
