"""Persons, riders and the two-wheelers they use."""

from __future__ import annotations

import numpy as np

from .camera import Points
from .scene import Colour, Part, SceneObject, Setting, shade
from .shapes import box, ellipse, limb

SKIN: tuple[Colour, ...] = ((226, 180, 150), (190, 140, 105), (120, 82, 60), (240, 200, 175))
HAIR: tuple[Colour, ...] = ((40, 30, 24), (90, 62, 40), (170, 140, 95), (120, 118, 116))
SHIRTS: tuple[Colour, ...] = (
    (178, 42, 46), (40, 66, 140), (226, 222, 214), (36, 36, 40), (212, 160, 44),
    (52, 112, 92), (120, 72, 128), (196, 104, 60), (140, 176, 206),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = ((38, 44, 66), (30, 30, 32), (88, 82, 76), (122, 108, 84))
FRAMES: tuple[Colour, ...] = (
    (30, 30, 34),
    (166, 36, 40),
    (28, 84, 140),
    (210, 210, 206),
    (60, 120, 80),
)
TYRE: Colour = (24, 24, 26)
UMBRELLAS: tuple[Colour, ...] = ((30, 32, 40), (150, 30, 44), (40, 74, 130), (206, 176, 60))


def _turned(points: Points, turn: float) -> Points:
    # A factor below 1 foreshortens a figure that is not seen exactly from the side.
    return points * (turn, 1.0)


def person(setting: Setting, x: float, z: float, label: str = "person") -> SceneObject:
    """A standing or walking person at street position (x, z)."""
    rng = setting.rng
    tall = setting.between(1.5, 1.92) if setting.chance(0.87) else setting.between(1.0, 1.4)
    k = tall / 1.75
    stride = setting.between(0.0, 0.34)
    girth = setting.between(0.85, 1.2)
    turn = setting.between(0.75, 1.0) * (1 if setting.chance(0.5) else -1)
    shirt, trousers = setting.pick(SHIRTS), setting.pick(TROUSERS)
    skin, hair = setting.pick(SKIN), setting.pick(HAIR)
    shapes: list[tuple[Points, Colour]] = [
        (limb(-0.02, 0.86, -stride, 0.03, 0.19 * girth), shade(trousers, 0.8)),
        (limb(0.02, 0.86, stride * 0.8, 0.03, 0.19 * girth), trousers),
        (box(-stride - 0.08, 0.0, -stride + 0.13, 0.08), (28, 26, 26)),
        (box(stride * 0.8 - 0.08, 0.0, stride * 0.8 + 0.13, 0.08), (28, 26, 26)),
        (limb(0.0, 1.36, -0.22 - stride * 0.3, 0.86, 0.12), shade(shirt, 0.78)),
    ]
    w = 0.2 * girth
    if setting.chance(0.25):
        coat = np.array([(-w, 1.46), (w, 1.46), (w * 1.35, 0.55), (-w * 1.35, 0.55)])
    else:
        coat = np.array([(-w, 1.46), (w, 1.46), (w * 0.95, 0.82), (-w * 0.95, 0.82)])
    shapes += [
        (coat, shirt),
        (limb(0.05, 1.38, 0.2 + stride * 0.4, 0.88, 0.12), shade(shirt, 0.9)),
        (box(-0.06, 1.4, 0.08, 1.55), shade(skin, 0.85)),
        (ellipse(0.01, 1.61, 0.115, 0.15), skin),
        (ellipse(-0.02, 1.68, 0.12, 0.1), hair),
    ]
    if setting.chance(0.3):
        bag = float(rng.choice([-1, 1]))
        shapes.append((box(0.18 * bag - 0.09, 0.75, 0.18 * bag + 0.09, 1.2), setting.pick(SHIRTS)))
    if setting.wet and setting.chance(0.5):
        top = ellipse(0.08, 1.78, 0.56, 0.36)
        top[:, 1] = np.maximum(top[:, 1], 1.8)
        shapes += [
            (limb(0.1, 1.1, 0.09, 1.9, 0.04), (60, 60, 60)),
            (top, setting.pick(UMBRELLAS)),
        ]
    camera = setting.camera
    parts = [Part(camera.standing(x, z, _turned(p * k, turn)), c) for p, c in shapes]
    column, row = camera.point(x, 0.0, z)
    scale = camera.scale(z)
    shadow = (column, row, 0.38 * scale, 0.09 * scale)
    return SceneObject(label, parts, z, shadow=shadow, grain=("fine", 0.06))


def crowd(setting: Setting, x: float, z: float, members: int) -> SceneObject:
    """Several persons too close together to tell apart, labelled as a group."""
    parts: list[Part] = []
    for member in range(members):
        parts += person(setting, x + 0.42 * member + setting.between(-0.06, 0.06), z).parts
    return SceneObject("persongroup", parts, z, grain=("fine", 0.06))


def _bicycle_parts(setting: Setting, x: float, z: float, turn: float, frame: Colour) -> list[Part]:
    camera, scale = setting.camera, setting.camera.scale(z)
    line = max(1.0, 0.055 * scale)

    def place(points: Points) -> Points:
        return camera.standing(x, z, _turned(points, turn))

    parts = [
        Part(place(ellipse(side * 0.53, 0.34, 0.33, 0.33)), TYRE, line, ring=True)
        for side in (-1, 1)
    ]
    triangle = np.array([(-0.53, 0.34), (-0.18, 0.86), (0.36, 0.84), (-0.06, 0.32), (-0.53, 0.34)])
    parts.append(Part(place(triangle), frame, line * 1.2, ring=True))
    for bar in ([(0.53, 0.34), (0.34, 1.0), (0.5, 1.06)], [(-0.06, 0.32), (-0.22, 0.95)]):
        parts.append(Part(place(np.array(bar)), frame, line * 1.2))
    parts.append(Part(place(box(-0.34, 0.93, -0.1, 1.0)), (26, 24, 24)))
    lamp = ellipse(0.44, 0.86, 0.06, 0.06)
    parts.append(Part(place(lamp), (240, 236, 210), solid=False, glow=0.5))
    return parts


def _turn(setting: Setting, narrowest: float) -> float:
    return setting.between(narrowest, 1.0) * (1 if setting.chance(0.5) else -1)


def bicycle(setting: Setting, x: float, z: float, turn: float | None = None) -> SceneObject:
    """A bicycle; what is between its spokes shows what is behind it."""
    turn = _turn(setting, 0.4) if turn is None else turn
    parts = _bicycle_parts(setting, x, z, turn, setting.pick(FRAMES))
    column, row = setting.camera.point(x, 0.0, z)
    scale = setting.camera.scale(z)
    shadow = (column, row, 0.8 * abs(turn) * scale, 0.07 * scale)
    return SceneObject("bicycle", parts, z, shadow=shadow, grain=("fine", 0.0))


def bicycle_stand(setting: Setting, x: float, z: float, members: int) -> SceneObject:
    """A row of parked bicycles, labelled as a group."""
    parts: list[Part] = []
    for member in range(members):
        parts += bicycle(setting, x + 0.5 * member, z, setting.between(0.45, 0.6)).parts
    return SceneObject("bicyclegroup", parts, z, grain=("fine", 0.0))


def motorcycle(setting: Setting, x: float, z: float, turn: float | None = None) -> SceneObject:
    """A motorcycle or scooter with thick wheels and a coloured tank."""
    turn = _turn(setting, 0.5) if turn is None else turn
    paint = setting.pick(
        ((190, 30, 34), (30, 32, 36), (36, 70, 160), (222, 120, 30), (228, 228, 226))
    )
    tank = np.array([(-0.3, 0.62), (-0.1, 0.95), (0.42, 1.0), (0.52, 0.68), (0.1, 0.5)])
    tail = np.array([(-0.3, 0.62), (-0.86, 0.92), (-0.82, 0.72), (-0.2, 0.48)])
    shapes: list[tuple[Points, Colour, float]] = [
        (ellipse(-0.68, 0.32, 0.32, 0.32), TYRE, 0),
        (ellipse(0.7, 0.32, 0.32, 0.32), TYRE, 0),
        (ellipse(-0.68, 0.32, 0.15, 0.15), (150, 150, 152), 0),
        (ellipse(0.7, 0.32, 0.15, 0.15), (150, 150, 152), 0),
        (box(-0.45, 0.22, 0.35, 0.62), (66, 66, 70), 0),
        (limb(0.7, 0.32, 0.46, 0.96, 0.1), (120, 120, 124), 0),
        (tail, shade(paint, 0.8), 0),
        (tank, paint, 0),
        (box(-0.75, 0.84, -0.05, 0.95), (20, 20, 22), 0),
        (limb(0.36, 1.0, 0.32, 1.16, 0.08), (40, 40, 42), 0),
        (ellipse(0.6, 0.86, 0.1, 0.1), (248, 240, 210), 0.9),
        (ellipse(-0.86, 0.84, 0.07, 0.07), (220, 20, 20), 0.7),
    ]
    camera = setting.camera
    parts = [Part(camera.standing(x, z, _turned(p, turn)), c, glow=g) for p, c, g in shapes]
    column, row = camera.point(x, 0.0, z)
    scale = camera.scale(z)
    shadow = (column, row, 1.0 * abs(turn) * scale, 0.1 * scale)
    return SceneObject("motorcycle", parts, z, shadow=shadow, grain=("fine", 0.03))


def rider(setting: Setting, x: float, z: float, motor: bool) -> list[SceneObject]:
    """A rider on a bicycle or motorcycle: the vehicle first, the rider in front of it."""
    turn = _turn(setting, 0.45)
    vehicle = motorcycle(setting, x, z, turn) if motor else bicycle(setting, x, z, turn)
    shirt, trousers = setting.pick(SHIRTS), setting.pick(TROUSERS)
    skin = setting.pick(SKIN)
    helmet = setting.pick(((30, 30, 34), (210, 212, 214), (190, 40, 40), (236, 190, 40)))
    lean = 0.5 if motor else 0.42
    w = 0.34 if motor else 0.28
    shapes = [
        (limb(-0.2, 1.02, 0.14, 0.7, 0.2), trousers),
        (limb(0.14, 0.74, -0.02, 0.3, 0.16), trousers),
        (box(-0.06, 0.24, 0.18, 0.34), (26, 26, 28)),
        (limb(-0.24, 0.95, -0.24 + lean * 0.75, 1.52, w), shirt),
        (limb(-0.24 + lean * 0.7, 1.46, 0.38, 1.06, 0.12), shade(shirt, 0.82)),
        (limb(0.02, 1.4, 0.12, 1.66, 0.14), shade(skin, 0.85)),
        (ellipse(0.12, 1.68, 0.13, 0.15), skin),
        (ellipse(0.1, 1.74, 0.17, 0.13), helmet),
    ]
    camera = setting.camera
    parts = [Part(camera.standing(x, z, _turned(p, turn)), c) for p, c in shapes]
    # A hair nearer than the vehicle, so that sorting by depth keeps the rider in front.
    return [vehicle, SceneObject("rider", parts, z - 0.01, grain=("fine", 0.06))]
