"""Painting of objects, one over the other, with the same outlines that the labels have."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .camera import Camera
from .scene import Colour, Part, SceneObject
from .shapes import FRACTION_BITS, fixed_point

Floats = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]


def make_noise(height: int, width: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Textures of three coarsenesses, each of shape (H, W) with mean 0 and deviation near 1."""
    unit = height / 256

    def layer(size: float) -> Floats:
        rows, columns = max(2, round(height / size)), max(2, round(width / size))
        small = rng.standard_normal((rows, columns), dtype=np.float32)
        if (rows, columns) == (height, width):
            return small
        grown = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        return grown.astype(np.float32)

    fine = layer(max(1.0, 1.3 * unit))
    middle = layer(max(2.0, 4.0 * unit))
    coarse = layer(max(4.0, 26 * unit))
    return {
        "fine": 0.7 * fine + 0.5 * coarse,
        "leafy": 0.55 * fine + 0.9 * middle,
        "coarse": coarse + 0.35 * fine,
    }


def polygon_mask(
    polygon: list[list[int]], height: int, width: int
) -> tuple[slice, slice, npt.NDArray[np.bool_]]:
    """The pixels that the Cityscapes scripts give to a polygon: its box and the mask inside it."""
    corners = np.array(polygon)
    left, top = corners.min(axis=0)
    right, bottom = np.minimum(corners.max(axis=0) + 1, (width, height))
    image = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(image).polygon([(int(x - left), int(y - top)) for x, y in polygon], fill=1)
    return slice(int(top), int(bottom)), slice(int(left), int(right)), np.asarray(image, bool)


class Canvas:
    """The picture in the making.

    Attributes:
        colour: what the camera would see in even light, uint8 (H, W, 3), RGB.
        light: what shines by itself, uint8 (H, W, 3).
        depth: distance in metres, float32 (H, W).
        road: where wet ground may reflect, bool (H, W).
    """

    def __init__(self, camera: Camera, noise: dict[str, Floats]) -> None:
        shape = (camera.height, camera.width)
        self.camera = camera
        self.noise = noise
        self.colour: Bytes = np.zeros((*shape, 3), np.uint8)
        self.light: Bytes = np.zeros((*shape, 3), np.uint8)
        self.depth: Floats = np.full(shape, 1e5, np.float32)
        self.road: npt.NDArray[np.bool_] = np.zeros(shape, bool)
        rows = np.maximum(np.arange(camera.height) + 0.5 - camera.horizon, 0.25)
        self._row_depth: Floats = (camera.focal * camera.eye / rows).astype(np.float32)

    def paint(self, item: SceneObject, polygon: list[list[int]]) -> None:
        """Paints an object inside its polygon; whole pixel coordinates [[x, y], ...]."""
        if item.shadow is not None:
            self._cast(*item.shadow)
        rows, columns, mask = polygon_mask(polygon, self.camera.height, self.camera.width)
        patch = self.colour[rows, columns].copy()
        light = np.zeros_like(patch)
        if item.base is not None:
            patch[:] = _blend(*item.base, patch.shape[0])
        shining = False
        for index, part in enumerate(item.parts):
            if index == 0 and item.base is not None and not part.width:
                continue  # the base already has the colour of the outline, with its gradient
            fill_part(patch, part, part.colour, columns.start, rows.start)
            # Painted even when dark: it hides the light of parts behind it.
            if part.glow or shining:
                red, green, blue = part.colour
                shown = (red * part.glow, green * part.glow, blue * part.glow)
                fill_part(light, part, shown, columns.start, rows.start)
                shining = True
        kind, strength = item.grain
        if strength:
            grain = 1.0 + strength * self.noise[kind][rows, columns]
            patch = times(patch, grain)
        self.colour[rows, columns][mask] = patch[mask]
        self.light[rows, columns][mask] = light[mask]
        self.road[rows, columns][mask] = item.label == "road"
        self.depth[rows, columns][mask] = self._depth(item, rows, columns)[mask]

    def _depth(self, item: SceneObject, rows: slice, columns: slice) -> Floats:
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if item.ground:
            return np.broadcast_to(self._row_depth[rows, None], shape)
        if item.slope is not None:
            near_column, near, far_column, far = item.slope
            # Along a plane, 1/depth is linear in the column.
            share = (np.arange(columns.start, columns.stop) - near_column) / (
                far_column - near_column + 1e-6
            )
            inverse = 1 / near + np.clip(share, 0, 1) * (1 / far - 1 / near)
            return np.broadcast_to((1 / inverse).astype(np.float32), shape)
        return np.full(shape, item.depth, np.float32)

    def _cast(self, column: float, row: float, half_width: float, half_height: float) -> None:
        # A soft dark ellipse on whatever has been painted so far.
        left, right = (
            int(max(column - half_width, 0)),
            int(min(column + half_width + 1, self.camera.width)),
        )
        top, bottom = (
            int(max(row - half_height, 0)),
            int(min(row + half_height + 1, self.camera.height)),
        )
        if right <= left or bottom <= top:
            return
        across = (np.arange(left, right) - column) / max(half_width, 1)
        down = (np.arange(top, bottom) - row) / max(half_height, 1)
        inside = np.clip(1.2 - across[None, :] ** 2 - down[:, None] ** 2, 0, 1)
        patch = self.colour[top:bottom, left:right]
        patch[:] = times(patch, 1 - 0.5 * inside)


def times(patch: Bytes, factor: Floats) -> Bytes:
    """The patch (uint8, H x W x 3) with its brightness multiplied by a factor (H, W)."""
    # OpenCV multiplies, rounds and saturates in one go.
    factors = cv2.merge([factor.astype(np.float32)] * 3)
    return np.asarray(cv2.multiply(patch, factors, dtype=cv2.CV_8U), np.uint8)


def _blend(high: Colour, low: Colour, rows: int) -> Floats:
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    return (1 - share) * np.array(high, np.float32) + share * np.array(low, np.float32)


def fill_part(patch: Bytes, part: Part, colour: Colour, left: int = 0, top: int = 0) -> None:
    """Paints one part into a patch (uint8, H x W x 3) whose corner is at (left, top)."""
    points = fixed_point(part.points, left, top)
    if part.width:
        thickness = max(1, round(part.width))
        cv2.polylines(patch, [points], part.ring, colour, thickness, cv2.LINE_AA, FRACTION_BITS)
    else:
        cv2.fillPoly(patch, [points], colour, cv2.LINE_AA, FRACTION_BITS)
