"""The background of a scene, whose tint is the only sure sign of the subset it belongs to.

Colours are RGB in [0, 1]; images are (H, W, 3).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .look import Look

# Two directions across the grey axis, of length 1.
_CHROMA = np.array([[2.0, -1.0, -1.0], [0.0, math.sqrt(3), -math.sqrt(3)]]) / math.sqrt(6)

#: Length of a subset's tint at dial 0, and the share of it that is left at dial 1.
TINT = 0.25
TINT_LEFT = 0.4


def tint(subset: int, subsets: int, dial: float, rng: np.random.Generator) -> np.ndarray:
    """A background tint: the subset's own, and a deviation of the image.

    Subsets' tints stand at equal angles around grey. With the dial they come closer to it, and the
    deviation, evenly spread over a disc, grows until the discs of two subsets touch at dial 1. So
    the true tint tells the subset without error at any dial below 1.

    Returns:
        (3,) to add to a grey.
    """
    length = TINT * (1 - (1 - TINT_LEFT) * dial)
    angle = 2 * math.pi * subset / subsets
    touching = length * math.sin(math.pi / subsets)
    radius, turn = dial * touching * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
    place = [
        length * math.cos(angle) + radius * math.cos(turn),
        length * math.sin(angle) + radius * math.sin(turn),
    ]
    return np.array(place) @ _CHROMA


def background(size: int, subset: int, look: Look, rng: np.random.Generator) -> np.ndarray:
    """A tinted grey (size, size, 3) with grain; grey and grain vary from image to image alike in
    all subsets, and more with the nuisance."""
    grey = 0.5 + rng.uniform(-1, 1) * (0.1 + 0.1 * look.nuisance)
    points = rng.normal(0, rng.uniform(0.02, 0.1 + 0.2 * look.nuisance), (size, size))
    grain = 2 * cv2.GaussianBlur(points, (0, 0), rng.uniform(0.6, 2.0))
    return grey + grain[..., None] + tint(subset, look.subsets, look.dial, rng)


def finish(picture: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """A picture in a light of its own and with noise, both varying more with the dial; as uint8.

    With the nuisance pictures are darker, down to 0.3 of their light.
    """
    noise = rng.normal(0, 0.02 + 0.06 * look.dial, picture.shape)
    light = 1 + rng.uniform(-1, 1) * (0.05 + 0.3 * look.dial)
    lit = picture * light * rng.uniform(1 - 0.7 * look.nuisance, 1) + noise
    return np.clip(lit * 255 + 0.5, 0, 255).astype(np.uint8)
