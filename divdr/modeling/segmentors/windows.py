"""Maps of several strides cut into windows with a halo; an expert sees each as an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Rows of a mixture: the images of a batch, or windows of them.

    Shapes: N images, R = N · ``down`` · ``across`` rows, image by image, in each row by row.

    Attributes:
        cells: rows and columns of a window in the coarsest map; 0: the window is the whole image.
        halo: cells of the coarsest map around it that are seen too.
        ratios: of each map, its cells per cell of the coarsest, by name.
        down: windows of an image from top to bottom.
        across: from left to right.
    """

    cells: int
    halo: int
    ratios: Mapping[str, int]
    down: int
    across: int

    @classmethod
    def over(
        cls, features: Mapping[str, Tensor], strides: Mapping[str, int], cells: int, halo: int
    ) -> Windows:
        """Those of maps (N, C, H, W) with these strides; ``cells`` 0 makes one window an image."""
        coarsest = max(strides, key=lambda name: strides[name])
        ratios = {name: strides[coarsest] // stride for name, stride in strides.items()}
        if cells == 0:
            return cls(0, 0, ratios, 1, 1)
        rows, columns = features[coarsest].shape[-2:]
        return cls(cells, halo, ratios, math.ceil(rows / cells), math.ceil(columns / cells))

    @property
    def each(self) -> int:
        """Windows of an image."""
        return self.down * self.across

    def per_cell(self, features: Mapping[str, Tensor], made: Tensor) -> int:
        """Columns of what a head made of the features, for each of the coarsest map.

        It is some times as wide as the finest, whose own number of columns for each of the coarsest
        is known; the last column of the coarsest map may stand for fewer.
        """
        finest = max(self.ratios, key=lambda name: self.ratios[name])
        return max(1, round(made.shape[-1] * self.ratios[finest] / features[finest].shape[-1]))

    def cut(self, features: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The maps of some windows (R,), their halo included; beyond the image they are 0."""
        images = rows // self.each
        if self.cells == 0:
            return {name: features[name][images] for name in self.ratios}
        found = {}
        top, left = rows % self.each // self.across, rows % self.across
        for name, ratio in self.ratios.items():
            size, halo = self.cells * ratio, self.halo * ratio
            maps = self._padded(features[name], size, halo)
            inside = torch.arange(size + 2 * halo, device=rows.device)
            vertical = (top * size)[:, None] + inside
            horizontal = (left * size)[:, None] + inside
            found[name] = maps.permute(0, 2, 3, 1)[
                images[:, None, None], vertical[:, :, None], horizontal[:, None, :]
            ].permute(0, 3, 1, 2)
        return found

    def _padded(self, maps: Tensor, size: int, halo: int) -> Tensor:
        height, width = maps.shape[-2:]
        right, bottom = self.across * size - width, self.down * size - height
        return F.pad(maps, (halo, right + halo, halo, bottom + halo))

    def inner(self, answers: Tensor, stride: int) -> Tensor:
        """What an expert says of windows without their halo: (R, C, h, w) pixels.

        Args:
            answers: of the windows with halo.
            stride: pixels per cell of the coarsest map.
        """
        edge = self.halo * stride
        if self.cells == 0 or edge == 0:
            return answers
        return answers[..., edge:-edge, edge:-edge]

    def of(self, pixels: Tensor, stride: int) -> Tensor:
        """(R, C, h, w) windows of maps of pixels (N, C, H, W) without halo; 0 beyond the image."""
        if self.cells == 0:
            return pixels
        size = self.cells * stride
        padded = self._padded(pixels, size, 0)
        count, channels = padded.shape[:2]
        parts = padded.reshape(count, channels, self.down, size, self.across, size)
        return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, size, size)

    def together(self, parts: Tensor, height: int, width: int) -> Tensor:
        """(N, C, height, width) of windows (R, C, h, w); the opposite of :meth:`of`."""
        if self.cells == 0:
            return parts
        rows, channels, size, _ = parts.shape
        grid = parts.reshape(-1, self.down, self.across, channels, size, size)
        whole = grid.permute(0, 3, 1, 4, 2, 5)
        whole = whole.reshape(rows // self.each, channels, self.down * size, self.across * size)
        return whole[..., :height, :width]

    def means(self, values: Tensor, stride: int) -> Tensor:
        """(R, C) mean of each window over the pixels (N, C, H, W) that lie in the image."""
        if self.cells == 0:
            return values.mean(dim=(2, 3))
        sums = self.of(values, stride).sum(dim=(2, 3))
        counts = self.of(torch.ones_like(values[:, :1]), stride).sum(dim=(2, 3))
        return sums / counts
