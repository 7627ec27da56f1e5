"""Cutting photographs and their boxes into tiles."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

#: A box counts in a tile that holds at least this part of its area.
MIN_INSIDE = 0.4
#: Smaller remnants, in pixels, are nothing that a detector could find.
MIN_SIDE = 4


@dataclass(frozen=True)
class Tile:
    """A rectangle of a photograph; its upper left corner and its size in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Part:
    """What a tile holds of a box.

    Attributes:
        index: number of the box in its photograph.
        box: (x, y, width, height) in pixels of the tile.
        crowd: whether it is only a remnant, which evaluation must neither ask for nor punish.
    """

    index: int
    box: tuple[float, float, float, float]
    crowd: bool


def overlapping_tiles(width: int, height: int, tile: int, overlap: int) -> list[Tile]:
    """Tiles of one size, evenly spread, that share at least ``overlap`` pixels with the next.

    Args:
        width, height: size of the photograph in pixels.
        tile: side of the tiles in pixels; the photograph's own where that is smaller.
        overlap: in pixels, less than ``tile``.
    """

    def starts(length: int) -> list[int]:
        free = max(0, length - tile)
        steps = math.ceil(free / (tile - overlap))
        return [round(i * free / steps) for i in range(steps + 1)] if steps else [0]

    return [
        Tile(x, y, min(tile, width), min(tile, height))
        for y in starts(height)
        for x in starts(width)
    ]


def grid_tiles(width: int, height: int, tile: int) -> list[Tile]:
    """The fewest tiles, equal to within a pixel, that cover every pixel exactly once.

    Args:
        width, height: size of the photograph in pixels.
        tile: the largest side of a tile in pixels.
    """

    def spans(length: int) -> list[tuple[int, int]]:
        count = math.ceil(length / tile)
        edges = [i * length // count for i in range(count + 1)]
        return [(a, b - a) for a, b in itertools.pairwise(edges)]

    return [Tile(x, y, w, h) for y, h in spans(height) for x, w in spans(width)]


def cut_boxes(boxes: np.ndarray, tiles: list[Tile], *, once: bool) -> list[list[Part]]:
    """The parts of the boxes in each tile.

    A part with at least ``MIN_INSIDE`` of the box's area stands for the box; a smaller one is a
    crowd, and one that is less than ``MIN_SIDE`` pixels wide or high is dropped.

    Args:
        boxes: (N, 4) array of x0, y0, x1, y1 in pixels of the photograph, each with an area.
        tiles: of the same photograph.
        once: only the tile with most of a box (the first of equals) may count it, so that tiles
            without overlap ask for no box twice; its other parts are crowds.

    Returns:
        For each tile its parts, in the order of the boxes.
    """
    if not len(boxes):
        return [[] for _ in tiles]
    low = np.array([(t.x, t.y) for t in tiles], dtype=float)[:, None]
    high = low + np.array([(t.width, t.height) for t in tiles], dtype=float)[:, None]
    start = np.maximum(boxes[None, :, :2], low)
    size = np.maximum(np.minimum(boxes[None, :, 2:], high) - start, 0)  # (tiles, N, 2)
    inside = size.prod(axis=2) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    counts = inside >= MIN_INSIDE
    if once:
        counts &= np.arange(len(tiles))[:, None] == inside.argmax(axis=0)
    present = counts | (size.min(axis=2) >= MIN_SIDE)
    corner = start - low
    return [
        [
            Part(int(n), (*corner[t, n].tolist(), *size[t, n].tolist()), not counts[t, n])
            for n in np.flatnonzero(present[t])
        ]
        for t in range(len(tiles))
    ]
