"""The pinhole camera that looks along a street."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

#: Nothing nearer than this (metres) is projected: coordinates would grow without bound.
NEAREST = 0.8


@dataclass(frozen=True)
class Camera:
    """Maps street coordinates to pixels.

    Street coordinates are metres: x to the right, y up from the ground, z ahead of the camera.

    Attributes:
        height, width: size of the picture in pixels.
        focal: focal length in pixels.
        horizon: row of the horizon in pixels.
        vanish: column of the vanishing point in pixels.
        eye: height of the camera above the ground in metres.
        bend: how much the street curves: x moves by ``bend * z**2`` metres.
    """

    height: int
    width: int
    focal: float
    horizon: float
    vanish: float
    eye: float
    bend: float

    def scale(self, z: float) -> float:
        """Pixels per metre at depth ``z``."""
        return self.focal / max(z, NEAREST)

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row of one street point."""
        z = max(z, NEAREST)
        scale = self.focal / z
        column = self.vanish + scale * (x + self.bend * z * z)
        return column, self.horizon + scale * (self.eye - y)

    def points(self, places: Iterable[tuple[float, float, float]]) -> Points:
        """Street points as pixels, shape (N, 2)."""
        return np.array([self.point(*place) for place in places], dtype=np.float64)

    def nearest_depth(self) -> float:
        """Depth in metres of the ground at the bottom row of the picture."""
        return self.focal * self.eye / max(self.height - self.horizon, 1.0)

    def strip(self, left: float, right: float, near: float, far: float) -> Points:
        """A strip of ground from ``near`` to ``far`` between two lateral positions."""
        # Depths are spaced evenly in the picture rather than on the street, so bends look smooth.
        depths = 1.0 / np.linspace(1.0 / max(near, NEAREST), 1.0 / far, 14)
        there = [(left, 0.0, float(z)) for z in depths]
        back = [(right, 0.0, float(z)) for z in depths[::-1]]
        return self.points(there + back)

    def upright(self, x: float, low: float, high: float, near: float, far: float) -> Points:
        """A vertical plane along the street, as a quadrilateral."""
        return self.points([(x, low, near), (x, high, near), (x, high, far), (x, low, far)])

    def standing(self, x: float, z: float, local: Points, base: float = 0.0) -> Points:
        """Points of a flat figure facing the camera at (x, z); ``local`` is in metres, y up."""
        column, row = self.point(x, base, z)
        scale = self.scale(z)
        return np.stack([column + scale * local[:, 0], row - scale * local[:, 1]], axis=1)
