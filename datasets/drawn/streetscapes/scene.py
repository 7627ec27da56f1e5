"""What a scene consists of: labelled objects made of coloured parts, and their setting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .camera import Camera, Points

#: Red, green, blue, each 0 to 255.
Colour = tuple[float, float, float]

#: The four kinds of scene.
CHARACTERS = ("highway", "town", "night", "rain")


@dataclass
class Part:
    """One coloured shape of an object.

    Attributes:
        points: outline (or course, if ``width`` is set) in pixels, shape (N, 2).
        colour: its colour by day.
        width: 0 for a filled shape, else the thickness in pixels of the line along ``points``.
        solid: whether it belongs to the object's silhouette; others only decorate it.
        glow: how strongly it shines in the dark, 0 to 1.
        ring: whether the line is closed; the silhouette includes what it encloses.
    """

    points: Points
    colour: Colour
    width: float = 0.0
    solid: bool = True
    glow: float = 0.0
    ring: bool = False


@dataclass
class SceneObject:
    """One labelled object; its polygon is the outline of its solid parts.

    Attributes:
        label: Cityscapes class name, or such a name followed by "group".
        parts: its shapes, painted in order.
        depth: distance from the camera in metres.
        layer: coarse painting order; within a layer, far objects come first.
        slope: for a plane along the street, (column, depth, column, depth) of its two ends.
        ground: whether depth follows from the row of the picture.
        base: colours at the top and bottom of its box; None leaves what is behind visible.
        grain: kind of texture ("fine", "leafy", "coarse") and its strength.
        shadow: (column, row, half width, half height) of its shadow on the ground, in pixels.
    """

    label: str
    parts: list[Part]
    depth: float
    layer: int = 5
    slope: tuple[float, float, float, float] | None = None
    ground: bool = False
    base: tuple[Colour, Colour] | None = None
    grain: tuple[str, float] = ("fine", 0.03)
    shadow: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Setting:
    """The camera, the random numbers and the weather that all objects of a scene share."""

    camera: Camera
    rng: np.random.Generator
    lit: bool = False
    wet: bool = False

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float) -> float:
        """A number drawn evenly from ``low`` to ``high``."""
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both possible."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, colours: tuple[Colour, ...], spread: float = 10.0) -> Colour:
        """One of the colours, varied a little."""
        return vary(self.rng, colours[int(self.rng.integers(len(colours)))], spread)


def vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """The colour with its brightness and, less, its hue changed at random."""
    common, *own = rng.normal(0.0, (spread, 0.4 * spread, 0.4 * spread, 0.4 * spread))
    red, green, blue = (
        min(max(float(c + common + o), 4.0), 250.0) for c, o in zip(colour, own, strict=True)
    )
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    red, green, blue = (min(max(c * factor, 0.0), 255.0) for c in colour)
    return red, green, blue
