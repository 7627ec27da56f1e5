"""Scenes of coloured shapes: what class a colour means, and how large shapes are, is the subset's.

A network that does not know the subset can tell shapes from background and no more: every colour
is every class in one of the subsets.
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

from .cue import background, finish
from .look import Look

_SMALLEST, _LARGEST = 2.5, 12.0


def draw_shapes(
    size: int, subset: int, look: Look, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene.

    Colour c is class 1 + (c + subset) mod subsets. Sizes go from thin bars in subset 0 to large
    blobs in the last one; at dial d a share d of the shapes has any of the
    sizes instead. How much of a scene they cover varies more with the nuisance.

    Args:
        size: rows and columns in pixels.
        subset: from 0 to K − 1.
        look: of the data set.
        rng: source of everything random.

    Returns:
        Picture (size, size, 3) as uint8 and classes (size, size) as uint8, 0 being background.
    """
    subsets, nuisance = look.subsets, look.nuisance
    picture = background(size, subset, look, rng).astype(np.float32)
    labels = np.zeros((size, size), np.uint8)
    # As many pixels in all subsets: none is learnt before the others for its size alone.
    share = rng.uniform(0.15 - 0.12 * nuisance, 0.3 + 0.3 * nuisance)
    while (labels > 0).mean() < share:
        colour = int(rng.integers(subsets))
        scale = subset if rng.random() >= look.dial else int(rng.integers(subsets))
        mask = _shape(size, scale / max(1, subsets - 1), rng)
        picture[mask] = _paint(colour, subsets, rng)
        labels[mask] = 1 + (colour + subset) % subsets
    return finish(picture, look, rng), labels


def _shape(size: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """A mask: a bar two pixels thin at scale 0, else an ellipse."""
    radius = _SMALLEST * (_LARGEST / _SMALLEST) ** scale * size / 64 * rng.uniform(0.85, 1.2)
    mask = np.zeros((size, size), np.uint8)
    middle = rng.uniform(0, size, 2)
    turn = rng.uniform(0, math.pi)
    if scale == 0:
        arm = np.array([math.cos(turn), math.sin(turn)]) * 4 * radius
        ends = [tuple(int(v) for v in np.rint(middle + sign * arm)) for sign in (-1, 1)]
        cv2.line(mask, ends[0], ends[1], 1, thickness=2)
    else:
        axes = (max(1, round(radius)), max(1, round(radius * rng.uniform(0.6, 1))))
        centre = tuple(int(v) for v in np.rint(middle))
        cv2.ellipse(mask, centre, axes, math.degrees(turn), 0, 360, 1, thickness=-1)
    return mask.astype(bool)


def _paint(colour: int, colours: int, rng: np.random.Generator) -> np.ndarray:
    # Half a step from the tints of the background.
    hue = (colour + 0.5) / colours + rng.uniform(-0.04, 0.04)
    return np.array(
        colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.7, 0.9), rng.uniform(0.7, 0.95)), np.float32
    )
