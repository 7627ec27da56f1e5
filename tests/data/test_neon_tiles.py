"""Cutting photographs and boxes into tiles."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared.neon_trees.tiles import (
    MIN_INSIDE,
    MIN_SIDE,
    cut_boxes,
    grid_tiles,
    overlapping_tiles,
)


def test_parts_of_a_box_that_tiles_cut():
    tiles = grid_tiles(80, 40, 40)
    boxes = np.array([[36, 0, 46, 10], [36, 0, 47, 10], [37, 0, 57, 10]], dtype=float)
    left, right = cut_boxes(boxes, tiles, once=False)
    # 4 of 10 columns are enough; 4 of 11 are a remnant; 3 of 20 are nothing.
    assert [(p.index, p.box, p.crowd) for p in left] == [
        (0, (36, 0, 4, 10), False),
        (1, (36, 0, 4, 10), True),
    ]
    assert [(p.index, p.box, p.crowd) for p in right] == [
        (0, (0, 0, 6, 10), False),
        (1, (0, 0, 7, 10), False),
        (2, (0, 0, 17, 10), False),
    ]
    left, right = cut_boxes(boxes, tiles, once=True)
    assert [p.crowd for p in left] == [True, True]
    assert [p.crowd for p in right] == [False] * 3


def test_photographs_smaller_than_a_tile_are_one_tile():
    for tiles in (overlapping_tiles(30, 20, 40, 10), grid_tiles(30, 20, 40)):
        assert [(t.x, t.y, t.width, t.height) for t in tiles] == [(0, 0, 30, 20)]


def counted_pixels(box, tile, width, height):
    """Pixels of a box in a tile, counted one by one."""
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]


@st.composite
def photograph(draw):
    width, height = draw(st.integers(8, 70)), draw(st.integers(8, 70))
    boxes = []
    for _ in range(draw(st.integers(0, 6))):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height))))
    return width, height, boxes


@given(photograph(), st.integers(4, 80))
@settings(max_examples=150, deadline=None)
def test_every_box_is_counted_once_or_accounted_for(scene, tile):
    width, height, boxes = scene
    tiles = grid_tiles(width, height, tile)
    covered = np.zeros((height, width), dtype=int)
    for t in tiles:
        covered[t.y : t.y + t.height, t.x : t.x + t.width] += 1
        assert max(t.width, t.height) <= tile
    assert (covered == 1).all()

    found = cut_boxes(np.array(boxes, dtype=float).reshape(-1, 4), tiles, once=True)
    expected = [[] for _ in tiles]
    for index, box in enumerate(boxes):
        masks = [counted_pixels(box, t, width, height) for t in tiles]
        whole = sum(int(mask.sum()) for mask in masks)
        best = max(range(len(tiles)), key=lambda k: masks[k].sum())
        for k, mask in enumerate(masks):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            counts = k == best and mask.sum() / whole >= MIN_INSIDE
            if counts or min(len(rows), len(columns)) >= MIN_SIDE:
                part = (columns[0], rows[0], len(columns), len(rows))
                expected[k].append((index, part, not counts))
    assert [[(p.index, p.box, p.crowd) for p in parts] for parts in found] == expected


@given(st.integers(1, 300), st.integers(1, 300), st.integers(10, 90), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_training_tiles_cover_the_photograph_and_overlap(width, height, tile, overlap):
    tiles = overlapping_tiles(width, height, tile, overlap)
    assert {(t.width, t.height) for t in tiles} == {(min(tile, width), min(tile, height))}
    for length, starts in ((width, {t.x for t in tiles}), (height, {t.y for t in tiles})):
        ordered = sorted(starts)
        assert ordered[0] == 0
        assert ordered[-1] == max(0, length - tile)
        assert all(b - a <= tile - overlap for a, b in itertools.pairwise(ordered))
