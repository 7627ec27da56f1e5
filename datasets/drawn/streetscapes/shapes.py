"""Plain outlines, and the one polygon around several shapes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .camera import Points
from .scene import Part

#: Binary digits after the point in coordinates handed to OpenCV.
FRACTION_BITS = 4

#: Coordinates beyond this many pixels are cut: OpenCV counts in 32 bits.
FARTHEST = 1e6

#: What the outline of a blob is made of: a circle and waves running around it.
_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_UNIT_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_WAVES = np.array([2, 3, 5, 8, 13])
_WAVE_ANGLES = _WAVES[:, None] * _ANGLES


def fixed_point(points: Points, left: float = 0.0, top: float = 0.0) -> np.ndarray:
    """Pixel coordinates as OpenCV's fixed-point numbers, relative to a corner."""
    moved = np.clip(points - (left, top), -FARTHEST, FARTHEST)
    return np.round(moved * (1 << FRACTION_BITS)).astype(np.int32).reshape(-1, 1, 2)


def box(left: float, low: float, right: float, high: float) -> Points:
    """An upright rectangle."""
    return np.array([(left, low), (right, low), (right, high), (left, high)], dtype=np.float64)


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 18) -> Points:
    """An ellipse as a polygon."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def limb(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    """A straight bar of the given width between two points."""
    along = np.array([x1 - x0, y1 - y0])
    along = along / max(float(np.hypot(*along)), 1e-9)
    aside = np.array([-along[1], along[0]]) * width / 2
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return np.stack([start + aside, end + aside, end - aside, start - aside])


def blob(
    rng: np.random.Generator, x: float, y: float, rx: float, ry: float, roughness: float = 0.16
) -> Points:
    """An irregular round shape, such as the crown of a tree."""
    strengths = roughness * rng.uniform(0.3, 1.0, len(_WAVES)) / np.sqrt(_WAVES)
    phases = rng.uniform(0, 2 * np.pi, len(_WAVES))
    radius = 1 + strengths @ np.sin(_WAVE_ANGLES + phases[:, None])
    points: Points = radius[:, None] * _UNIT_CIRCLE * (rx, ry) + (x, y)
    return points


def hull(points: Points) -> Points:
    """The convex hull, shape (M, 2)."""
    return cv2.convexHull(points.astype(np.float32)).reshape(-1, 2).astype(np.float64)


def silhouette(
    parts: Sequence[Part], shape: tuple[int, int], left: float = 0.0, top: float = 0.0
) -> np.ndarray:
    """The pixels of the solid parts: uint8 (H, W), 1 inside, relative to a corner."""
    canvas = np.zeros(shape, np.uint8)
    for part in parts:
        if not part.solid:
            continue
        points = fixed_point(part.points, left, top)
        if part.width:
            thickness = max(2, round(part.width))
            cv2.polylines(canvas, [points], part.ring, 1, thickness, cv2.LINE_8, FRACTION_BITS)
        if not part.width or part.ring:
            cv2.fillPoly(canvas, [points], 1, cv2.LINE_8, FRACTION_BITS)
    return canvas


def outline(parts: Sequence[Part], height: int, width: int) -> list[list[int]] | None:
    """The polygon around all solid parts, cut to the picture.

    Returns:
        Whole pixel coordinates [[x, y], ...] of the largest connected piece, with at least three
        corners that enclose an area; None if no such piece lies in the picture.
    """
    solid = [part for part in parts if part.solid]
    if not solid:
        return None
    margin = max(part.width for part in solid) / 2 + 2
    every = np.concatenate([part.points for part in solid])
    left, top = np.clip(np.floor(every.min(axis=0) - margin), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(every.max(axis=0) + margin), 0, (width, height)).astype(int)
    if right - left < 2 or bottom - top < 2:
        return None
    canvas = silhouette(solid, (bottom - top, right - left), float(left), float(top))
    # Pieces one pixel thin would be polygons without area, which geometry libraries reject.
    mask = cv2.morphologyEx(canvas, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    rough = cv2.approxPolyDP(largest, 0.6 * max(1.0, height / 512), True)
    if len(rough) < 3 or cv2.contourArea(rough) < 1:
        return None
    return [[int(x + left), int(y + top)] for x, y in rough.reshape(-1, 2)]
