"""Objects other than people, each with shapes and colours of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from drawn.streetscapes import vehicles
from drawn.streetscapes.scene import Colour, SceneObject, Setting, shade
from drawn.streetscapes.shapes import blob, box, ellipse, limb

from .person import person
from .thing import Thing, stand

_FUR: tuple[Colour, ...] = ((150, 96, 50), (92, 62, 40), (206, 170, 120), (60, 54, 52))
_BALLS: tuple[Colour, ...] = ((240, 238, 230), (232, 120, 30), (236, 220, 60))
_KITES: tuple[Colour, ...] = ((226, 40, 60), (250, 200, 30), (40, 120, 220), (180, 50, 190))
_GLASS: tuple[Colour, ...] = ((30, 120, 60), (40, 90, 70), (120, 66, 26))
_WOOD: tuple[Colour, ...] = ((160, 106, 60), (116, 70, 40), (196, 150, 96))
_CLOTH: tuple[Colour, ...] = ((200, 40, 60), (40, 110, 190), (240, 180, 50), (90, 60, 140))
_CLUTTER: tuple[Colour, ...] = ((120, 116, 108), (96, 88, 80), (140, 130, 110))
_DARK: Colour = (36, 32, 30)
_WHITE: Colour = (240, 240, 236)


def _mirrored(setting: Setting) -> bool:
    return setting.chance(0.5)


def _vehicle(item: SceneObject) -> Thing:
    return Thing(item.label, item.parts, item.depth, shadow=item.shadow)


def car(setting: Setting, x: float, z: float) -> Thing:
    """A car, across the view or along it."""
    if setting.chance(0.6):
        return _vehicle(vehicles.side_car(setting, x, z))
    return _vehicle(vehicles.car(setting, x, z, setting.chance(0.5)))


def bus(setting: Setting, x: float, z: float) -> Thing:
    """A bus with its end towards the camera."""
    return _vehicle(vehicles.bus(setting, x, z, setting.chance(0.5)))


def dog(setting: Setting, x: float, z: float) -> Thing:
    """A dog from the side."""
    fur = setting.pick(_FUR)
    step = setting.between(-0.08, 0.08)
    far, near = shade(fur, 0.7), shade(fur, 0.92)
    tail = setting.between(0.75, 1.0)
    shapes = [
        (limb(-0.3, 0.45, -0.3 - step, 0.0, 0.1), far),
        (limb(0.28, 0.45, 0.28 + step, 0.0, 0.1), far),
        (limb(-0.42, 0.58, -0.72, tail, 0.07), near),
        (ellipse(-0.05, 0.52, 0.48, 0.19), fur),
        (limb(-0.38, 0.45, -0.38 + step, 0.0, 0.11), near),
        (limb(0.36, 0.45, 0.36 - step, 0.0, 0.11), near),
        (limb(0.3, 0.55, 0.55, 0.85, 0.22), fur),
        (ellipse(0.58, 0.86, 0.19, 0.16), fur),
        (ellipse(0.76, 0.81, 0.14, 0.09), near),
        (ellipse(0.46, 0.84, 0.07, 0.16), far),
    ]
    details = [(ellipse(0.87, 0.84, 0.045, 0.04), _DARK), (ellipse(0.63, 0.9, 0.03, 0.03), _DARK)]
    return stand(setting, "dog", x, z, shapes, details, mirror=_mirrored(setting))


def ball(setting: Setting, x: float, z: float) -> Thing:
    """A ball on the ground or in the air."""
    colour, r = setting.pick(_BALLS), setting.between(0.17, 0.26)
    turn = setting.between(0, 2 * np.pi)
    spots = [ellipse(0, r, 0.3 * r, 0.3 * r, 5)]
    for k in range(5):
        angle = turn + 2 * np.pi * k / 5
        spots.append(
            ellipse(0.8 * r * np.cos(angle), r + 0.8 * r * np.sin(angle), 0.24 * r, 0.24 * r, 6)
        )
    base = setting.between(0.5, 2.0) if setting.chance(0.3) else 0.0
    spot = shade(colour, 0.25)
    light = (ellipse(-0.3 * r, 1.3 * r, 0.5 * r, 0.5 * r), shade(colour, 1.15))
    details = [light, *((points, spot) for points in spots)]
    return stand(
        setting, "sports ball", x, z, [(ellipse(0, r, r, r, 26), colour)], details, base=base
    )


def kite(setting: Setting, x: float, z: float) -> Thing:
    """A four-coloured kite in the air, with a tail."""
    first, second = setting.pick(_KITES), setting.pick(_KITES)
    k = setting.between(0.6, 1.0)
    top, low, left, right = (0, 0.8), (0, -0.9), (-0.6, 0.15), (0.6, 0.15)
    quarters = [
        (np.array([top, left, (0, 0.15)]) * k, first),
        (np.array([top, right, (0, 0.15)]) * k, second),
        (np.array([low, left, (0, 0.15)]) * k, shade(second, 0.85)),
        (np.array([low, right, (0, 0.15)]) * k, shade(first, 0.85)),
    ]
    tail = []
    for step in range(1, 4):
        place = 0.12 * (-1) ** step, -0.9 - 0.24 * step
        previous = -0.12 * (-1) ** step * (step > 1), -0.9 - 0.24 * (step - 1)
        tail.append((limb(*previous, *place, 0.09) * k, first if step % 2 else second))
    high = setting.between(2.4, 4.2)
    return stand(
        setting, "kite", x, z, [*tail, *quarters], base=high, tilt=setting.between(-0.7, 0.7)
    )


def bottle(setting: Setting, x: float, z: float) -> Thing:
    """A bottle, larger than life."""
    glass = setting.pick(_GLASS)
    body = np.array([
        (-0.13, 0.0), (-0.13, 0.42), (-0.05, 0.56), (-0.05, 0.72),
        (0.05, 0.72), (0.05, 0.56), (0.13, 0.42), (0.13, 0.0),
    ])  # fmt: skip
    cap = (box(-0.06, 0.68, 0.06, 0.76), setting.pick(_CLOTH))
    label = (box(-0.13, 0.13, 0.13, 0.33), _WHITE)
    stripe = (box(-0.13, 0.2, 0.13, 0.26), setting.pick(_CLOTH))
    shine = (box(-0.09, 0.34, -0.05, 0.46), shade(glass, 1.7))
    return stand(setting, "bottle", x, z, [(body, glass), cap], [label, stripe, shine])


def chair(setting: Setting, x: float, z: float) -> Thing:
    """A chair with a back of bars, through which one sees what is behind it."""
    wood = setting.pick(_WOOD)
    dark = shade(wood, 0.72)
    shapes = [
        (limb(-0.14, 0.5, -0.14, 0.06, 0.06), dark),
        (limb(0.3, 0.5, 0.3, 0.06, 0.06), dark),
        (limb(-0.26, 1.05, -0.26, 0.0, 0.07), wood),
        (limb(0.2, 1.05, 0.2, 0.0, 0.07), wood),
        (box(-0.3, 0.94, 0.24, 1.08), wood),
        (box(-0.26, 0.7, 0.2, 0.79), dark),
        (np.array([(-0.3, 0.44), (0.22, 0.44), (0.36, 0.56), (-0.16, 0.56)]), shade(wood, 1.2)),
        (box(-0.3, 0.4, 0.22, 0.46), dark),
    ]
    return stand(setting, "chair", x, z, shapes, mirror=_mirrored(setting))


def umbrella(setting: Setting, x: float, z: float) -> Thing:
    """A parasol of six coloured sectors on a pole."""
    cloth, other = setting.pick(_CLOTH), _WHITE if setting.chance(0.5) else setting.pick(_CLOTH)
    wide, low = setting.between(0.8, 1.1), 1.5
    angles = np.linspace(np.pi, 0, 25)
    arc = np.stack([wide * np.cos(angles), low + 0.6 * np.sin(angles)], axis=1)
    sectors = []
    for k in range(6):
        edge = arc[4 * k : 4 * k + 5]
        middle = np.array([(wide * (k - 2.5) / 3, low + 0.06)])
        sectors.append(
            (np.concatenate([edge, middle, [(0.0, low + 0.6)]]), other if k % 2 else cloth)
        )
    tip = (limb(0, low + 0.5, 0, low + 0.72, 0.05), _DARK)
    pole = (limb(0, 0.0, 0, low + 0.5, 0.06), (90, 84, 80))
    whole = (
        np.concatenate([arc, [(wide * 0.4, low + 0.05), (-wide * 0.4, low + 0.05)]]),
        shade(cloth, 0.8),
    )
    tilt = setting.between(-0.25, 0.25)
    return stand(setting, "umbrella", x, z, [tip, pole, whole], sectors, tilt=tilt)


def stop_sign(setting: Setting, x: float, z: float) -> Thing:
    """A red octagon on a pole, with something like writing on it."""
    angles = np.pi / 8 + np.arange(8) * np.pi / 4

    def octagon(r: float) -> np.ndarray:
        return np.stack([r * np.cos(angles), 2.0 + r * np.sin(angles)], axis=1)

    red = setting.pick(((204, 24, 36),))
    shapes = [(limb(0, 0, 0, 1.8, 0.08), (130, 130, 132)), (octagon(0.42), _WHITE)]
    letters = [(box(-0.26 + 0.14 * k, 1.9, -0.16 + 0.14 * k, 2.1), _WHITE) for k in range(4)]
    return stand(setting, "stop sign", x, z, shapes, [(octagon(0.37), red), *letters])


def clutter(setting: Setting, x: float, z: float) -> Thing:
    """A heap that belongs to no class: its pixels have no label."""
    heap = blob(setting.rng, 0.0, 0.12, setting.between(0.4, 0.8), setting.between(0.25, 0.4))
    heap[:, 1] = np.maximum(heap[:, 1], 0.0)
    return stand(setting, "", x, z, [(heap, setting.pick(_CLUTTER))])


Maker = Callable[[Setting, float, float], Thing]

MAKERS: dict[str, Maker] = {
    "person": person,
    "car": car,
    "bus": bus,
    "dog": dog,
    "sports ball": ball,
    "kite": kite,
    "bottle": bottle,
    "chair": chair,
    "umbrella": umbrella,
    "stop sign": stop_sign,
}
