"""Scenes of real handwritten digits, whose class follows another rule in each subset.

The digits are scikit-learn's ``load_digits``: 1797 pictures of 8×8 pixels from the test part of
the UCI "Optical Recognition of Handwritten Digits" data (E. Alpaydin and C. Kaynak, 1998).
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from sklearn.datasets import load_digits

from .cue import background, finish
from .look import Look

#: Of every four digits one is kept for validation scenes.
_HELD_OUT_EVERY = 4

#: What makes a digit class 2 and not 1, by subset: odd; large; 5 or more; bright.
RULES = ("parity", "size", "value", "ink")

_SMALL, _LARGE = 13, 24


@cache
def load_digit_pictures(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 8, 8) in [0, 1] and values (N,) of those kept for validation, or the rest."""
    pictures, values = load_digits(return_X_y=True)
    chosen = (np.arange(len(values)) % _HELD_OUT_EVERY == 0) == held_out
    return pictures.reshape(-1, 8, 8)[chosen].astype(np.float32) / 16, values[chosen]


def draw_digits(
    size: int,
    subset: int,
    look: Look,
    rng: np.random.Generator,
    *,
    held_out: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene; see :func:`draw_shapes` for arguments and result.

    Pixels of a digit are class 1 or 2 by ``RULES[subset]``.

    Args:
        size, subset, look, rng: likewise.
        held_out: take the digits that are kept for validation, and not the others.
    """
    pictures, values = load_digit_pictures(held_out)
    picture = background(size, subset, look, rng).astype(np.float32)
    labels = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(4, 7)):
        index = int(rng.integers(len(values)))
        value, large, bright = int(values[index]), rng.random() < 0.5, rng.random() < 0.5
        side = round((_LARGE if large else _SMALL) * size / 64 * rng.uniform(0.9, 1.1))
        stroke = cv2.resize(pictures[index], (side, side), interpolation=cv2.INTER_LINEAR)
        row, column = rng.integers(0, max(1, size - side + 1), 2)
        place = (slice(row, row + side), slice(column, column + side))
        mask = stroke > 0.4
        picture[place][mask] = rng.uniform(0.9, 1) if bright else rng.uniform(0, 0.1)
        second = (value % 2 == 1, large, value >= 5, bright)[subset]
        labels[place][mask] = 2 if second else 1
    return finish(picture, look, rng), labels
