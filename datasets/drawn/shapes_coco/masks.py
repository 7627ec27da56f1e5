"""Masks in COCO's two forms: polygons, and run lengths of regions that stand for a group."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

#: Corners of polygons lie this fraction of a pixel inside the pixels' outer edges.
_FINENESS = 4


def polygons(mask: np.ndarray) -> list[list[float]]:
    """The polygons of a mask; pycocotools makes exactly the mask from them.

    A polygon cannot have a hole, so a piece with holes is cut into pieces without.

    Args:
        mask: bool (H, W).

    Returns:
        Flat lists [x0, y0, x1, y1, ...] in pixels, the upper left corner of the picture being
        (0, 0), each of at least three corners.
    """
    count, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    found = []
    for index in range(1, count):
        found += _piece(pieces == index)
    return found


def _piece(mask: np.ndarray) -> list[list[float]]:
    left, top, width, height = bounding_box(mask)
    patch = mask[top : top + height, left : left + width].astype(np.uint8)
    holes, hole = cv2.connectedComponents(np.pad(1 - patch, 1, constant_values=1), connectivity=4)
    if holes > 2:  # the first is the mask itself, the second what surrounds it
        column = left + int(np.median(np.nonzero(hole == 2)[1])) - 1
        near, far = mask.copy(), mask.copy()
        near[:, column + 1 :] = False
        far[:, : column + 1] = False
        return polygons(near) + polygons(far)
    fine = np.kron(patch, np.ones((_FINENESS, _FINENESS), np.uint8))
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = (contours[0].reshape(-1, 2) + 0.5) / _FINENESS + (left, top)
    return [[round(float(value), 3) for value in corners.ravel()]]


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of a mask that is not empty, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's uncompressed run lengths: column by column, the first run being outside."""
    pixels = np.concatenate([[0], mask.T.ravel().astype(np.int8), [1 - int(mask[-1, -1])]])
    ends = np.flatnonzero(np.diff(pixels))
    counts = np.diff(ends, prepend=0)
    return {"counts": [int(c) for c in counts], "size": [int(n) for n in mask.shape]}
