"""What stands in a scene: an object made of coloured parts, and the shared way to place one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drawn.streetscapes.camera import Points
from drawn.streetscapes.scene import Colour, Part, Setting

#: A shape in metres, y up, and its colour; "thin" decorations do not belong to the silhouette.
Shape = tuple[Points, Colour]

#: Column and row in pixels, and COCO's visibility: 0 unlabelled, 1 hidden, 2 visible.
Keypoint = tuple[float, float, int]


@dataclass
class Thing:
    """One object, or one group of people.

    Attributes:
        name: COCO class name; "" for clutter that has no label.
        parts: its shapes in pixels, painted in order.
        depth: distance from the camera in metres.
        crowd: whether it is a group of which nobody is annotated alone.
        keypoints: 17 of them for a person, in COCO's order; none for everything else.
        shadow: (column, row, half width, half height) of its shadow on the ground, in pixels.
    """

    name: str
    parts: list[Part]
    depth: float
    crowd: bool = False
    keypoints: list[Keypoint] = field(default_factory=list)
    shadow: tuple[float, float, float, float] | None = None


def stand(
    setting: Setting,
    name: str,
    x: float,
    z: float,
    shapes: Sequence[Shape],
    decoration: Sequence[Shape] = (),
    *,
    base: float = 0.0,
    mirror: bool = False,
    tilt: float = 0.0,
) -> Thing:
    """A flat figure facing the camera at street position (x, z).

    Args:
        shapes: make up its silhouette, back to front; metres, y up from its foot.
        decoration: painted over them, only inside the silhouette.
        base: height of its foot above the ground in metres.
        mirror: whether it is drawn the other way round.
        tilt: turns it around its foot, in radians.
    """
    sign = -1.0 if mirror else 1.0
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    camera = setting.camera
    parts = []
    for group, solid in ((shapes, True), (decoration, False)):
        for points, colour in group:
            local = (points * (sign, 1.0)) @ turn
            parts.append(Part(camera.standing(x, z, local, base), colour, solid=solid))
    outline = np.concatenate([part.points for part in parts if part.solid])
    column, row = camera.point(x, 0.0, z)
    half = 0.5 * float(np.ptp(outline[:, 0]))
    shadow = None if base else (column, row, half, 0.2 * half + 1)
    return Thing(name, parts, z, shadow=shadow)
