"""One scene: photographs of garments, tinted and scaled, over noise or a photograph."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

#: Fashion-MNIST's classes; class 0 of a scene's labels is the background.
CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)

#: Garments of an image of density 0 and of density 1, and their side as a share of the image's.
_NUMBERS = (2, 24)
_SIDES = (0.62, 0.14)
_SMALLEST = 10  # pixels of a side, below which no garment can be told from another
_GREY = 40  # of 255: darker pixels of a photograph are its black background
_LEAST_SHOWN = 0.3  # of a garment; those of which less shows are left out
_TRIES = 30


@dataclass(frozen=True)
class Garments:
    """Photographs to choose from.

    Attributes:
        pixels: (N, 28, 28) uint8, bright garments on black.
        labels: (N,) class from 0.
    """

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows.

    Attributes:
        picture: (H, W, 3) uint8, RGB.
        owner: (H, W) int, index of the visible object, -1 for the background.
        classes: of each object, from 0.
    """

    picture: np.ndarray
    owner: np.ndarray
    classes: list[int]


def paste_scene(
    garments: Garments,
    height: int,
    width: int,
    density: float,
    rng: np.random.Generator,
    background: np.ndarray | None = None,
) -> Scene:
    """A scene.

    Args:
        garments: to choose from.
        height: rows.
        width: columns.
        density: in [0, 1]: 0 shows two large garments, 1 about twenty-four small ones.
        rng: source of all that varies; the same state gives the same scene.
        background: (H, W, 3) uint8; None for coloured noise.
    """
    picture = _noise(height, width, rng) if background is None else background.astype(np.float32)
    few, many = _NUMBERS
    large, small = _SIDES
    count = round(few * (many / few) ** density)
    side = min(height, width) * large * (small / large) ** density
    owner = np.full((height, width), -1, np.int64)
    classes: list[int] = []
    sizes: list[int] = []
    for _ in range(count):
        number = int(rng.integers(len(garments.labels)))
        shown, mask = _garment(garments.pixels[number], side, rng)
        for _ in range(_TRIES):
            top, left = (
                int(rng.integers(-length // 5, edge - length + length // 5 + 1))
                for length, edge in zip(mask.shape, (height, width), strict=True)
            )
            rows, columns = _inside(top, mask.shape[0], height), _inside(left, mask.shape[1], width)
            part = mask[rows.start - top : rows.stop - top, columns.start - left :][
                :, : columns.stop - columns.start
            ]
            if _would_show(owner, sizes, rows, columns, part, mask.sum()):
                break
        else:
            continue
        colours = shown[rows.start - top : rows.stop - top, columns.start - left :]
        colours = colours[:, : columns.stop - columns.start]
        picture[rows, columns][part] = colours[part]
        owner[rows, columns][part] = len(classes)
        classes.append(int(garments.labels[number]))
        sizes.append(int(mask.sum()))
    grain = rng.normal(0.0, 4.0, picture.shape)
    return Scene((picture + grain).clip(0, 255).astype(np.uint8), owner, classes)


def _inside(start: int, length: int, edge: int) -> slice:
    return slice(max(0, start), min(edge, start + length))


def _would_show(
    owner: np.ndarray,
    sizes: list[int],
    rows: slice,
    columns: slice,
    part: np.ndarray,
    whole: int,
) -> bool:
    """Whether enough is left to see of a garment at this place, and of those that it hides."""
    if part.sum() < _LEAST_SHOWN * whole:
        return False
    hidden = np.bincount(owner[rows, columns][part] + 1, minlength=len(sizes) + 1)[1:]
    shown = np.bincount(owner.ravel() + 1, minlength=len(sizes) + 1)[1:]
    return bool((shown - hidden >= _LEAST_SHOWN * np.array(sizes)).all())


def _garment(
    pixels: np.ndarray, side: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A photograph, tinted and scaled: colours (h, w, 3) and mask (h, w), cut to its box."""
    length = max(_SMALLEST, round(side * rng.uniform(0.75, 1.3)))
    kind = cv2.INTER_AREA if length < len(pixels) else cv2.INTER_CUBIC
    grey = cv2.resize(pixels, (length, length), interpolation=kind)
    if rng.random() < 0.5:
        grey = grey[:, ::-1]
    mask = grey >= _GREY
    if not mask.any():
        mask = grey >= grey.max()  # a photograph that is dark all over
    tint = rng.uniform(0.45, 1.0, 3)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    colours = grey[..., None].astype(np.float32) * tint.astype(np.float32)
    return colours[box], mask[box]


def _noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) clouds of several sizes around one colour."""
    colour = rng.uniform(40.0, 215.0, 3)
    picture: np.ndarray = np.broadcast_to(colour, (height, width, 3)).astype(np.float32)
    for cells, strength in ((2, 30.0), (6, 20.0), (20, 12.0)):
        shape = (cells, max(1, round(cells * width / height)), 3)
        clouds = rng.normal(0.0, strength, shape).astype(np.float32)
        picture = picture + cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    return picture.clip(0, 255)
