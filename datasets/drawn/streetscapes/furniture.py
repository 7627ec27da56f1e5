"""Street furniture: lamps, traffic lights, traffic signs, gantries and small things."""

from __future__ import annotations

import numpy as np

from .camera import Points
from .scene import Colour, Part, SceneObject, Setting, shade
from .shapes import box, ellipse, limb

STEEL: tuple[Colour, ...] = ((92, 96, 98), (120, 122, 122), (70, 76, 74))
LAMP: Colour = (255, 214, 150)
SIGNALS: tuple[Colour, ...] = ((240, 40, 30), (250, 180, 30), (40, 220, 120))
WHITE: Colour = (236, 236, 232)
RED: Colour = (204, 28, 36)
BLUE: Colour = (28, 84, 176)


def _post(setting: Setting, x: float, z: float, low: float, high: float, thick: float) -> Part:
    # A pole must stay visible, and have an area, however far away it is.
    width = max(2.2, thick * setting.camera.scale(z))
    (column, bottom), (_, top) = setting.camera.point(x, low, z), setting.camera.point(x, high, z)
    return Part(limb(column, bottom, column, top, width), setting.pick(STEEL, 5))


def lamp(setting: Setting, x: float, z: float) -> SceneObject:
    """A street lamp on a high pole whose arm reaches over the road."""
    camera = setting.camera
    tall = setting.between(5.5, 8.0)
    reach = -1.4 if x > 0 else 1.4
    parts = [_post(setting, x, z, 0, tall, 0.17)]
    width = max(2.0, 0.12 * camera.scale(z))
    arm = camera.points([(x, tall, z), (x + reach, tall + 0.25, z)])
    parts.append(Part(arm, parts[0].colour, width))
    head = camera.standing(x, z, box(reach - 0.45, tall + 0.12, reach + 0.45, tall + 0.4))
    parts.append(Part(head, LAMP if setting.lit else (190, 190, 186), glow=1.0))
    return SceneObject("pole", parts, z, grain=("fine", 0.02))


def plain_pole(setting: Setting, x: float, z: float, tall: float) -> SceneObject:
    """A bare pole or bollard."""
    return SceneObject("pole", [_post(setting, x, z, 0, tall, 0.16)], z, grain=("fine", 0.02))


def traffic_light(setting: Setting, x: float, z: float) -> list[SceneObject]:
    """A traffic light and its pole."""
    camera = setting.camera
    bottom = setting.between(2.2, 2.8)
    k = setting.between(1.0, 1.35)
    pole = SceneObject("pole", [_post(setting, x, z, 0, bottom + 0.2, 0.16)], z)
    case = camera.standing(x, z - 0.02, box(-0.22 * k, bottom, 0.22 * k, bottom + 1.1 * k))
    parts = [Part(case, (26, 30, 28))]
    parts.append(
        Part(
            np.concatenate([case, case[:1]]),
            (206, 168, 44),
            max(1.0, 0.05 * camera.scale(z)),
            False,
        )
    )
    on = setting.count(0, 2)
    for light, colour in enumerate(SIGNALS):
        lens = camera.standing(
            x, z - 0.02, ellipse(0, bottom + (0.9 - 0.34 * light) * k, 0.14 * k, 0.14 * k)
        )
        shown = colour if light == on else shade(colour, 0.28)
        parts.append(Part(lens, shown, solid=False, glow=1.0 if light == on else 0.0))
    return [pole, SceneObject("traffic light", parts, z - 0.02, grain=("fine", 0.0))]


def _sign_face(setting: Setting) -> list[tuple[Points, Colour]]:
    kind = setting.count(0, 5)
    if kind == 0:  # a ban: red ring
        return [(ellipse(0, 0, 0.42, 0.42), RED), (ellipse(0, 0, 0.29, 0.29), WHITE)]
    if kind == 1:  # a warning: red-edged triangle
        outer = np.array([(-0.48, -0.36), (0.48, -0.36), (0.0, 0.5)])
        return [(outer, RED), (outer * 0.6 - (0, 0.06), WHITE)]
    if kind == 2:  # an order: blue disc with an arrow
        return [(ellipse(0, 0, 0.42, 0.42), BLUE), (limb(0, -0.26, 0, 0.26, 0.14), WHITE)]
    if kind == 3:  # priority: yellow diamond
        outer = np.array([(0, -0.52), (0.52, 0), (0, 0.52), (-0.52, 0)])
        return [(outer, WHITE), (outer * 0.72, (240, 190, 30))]
    if kind == 4:  # a hint: blue square
        return [(box(-0.4, -0.4, 0.4, 0.4), BLUE), (box(-0.24, -0.26, 0.24, 0.2), WHITE)]
    return [
        (box(-0.8, -0.3, 0.8, 0.3), (244, 202, 40)),
        (box(-0.6, -0.06, 0.6, 0.08), (30, 30, 30)),
    ]


def traffic_sign(setting: Setting, x: float, z: float) -> list[SceneObject]:
    """A traffic sign, or two above each other, and their pole."""
    camera = setting.camera
    centre, k = setting.between(2.2, 2.8), setting.between(0.9, 1.25)
    pole = SceneObject("pole", [_post(setting, x, z, 0, centre + 0.3, 0.09)], z)
    items = [pole]
    for level in range(2 if setting.chance(0.25) else 1):
        shift = np.array([0.0, centre + level * 1.0 * k])
        parts = [
            Part(camera.standing(x, z - 0.02, points * k + shift), colour, glow=0.12)
            for points, colour in _sign_face(setting)
        ]
        items.append(SceneObject("traffic sign", parts, z - 0.02, grain=("fine", 0.0)))
    return items


def gantry(setting: Setting, left: float, right: float, z: float) -> list[SceneObject]:
    """A bridge of steel over a highway that carries large direction signs."""
    camera = setting.camera
    steel = setting.pick(STEEL, 5)
    width = max(2.4, 0.3 * camera.scale(z))
    frame = camera.points([(left, 0, z), (left, 6.6, z), (right, 6.6, z), (right, 0, z)])
    items = [SceneObject("pole", [Part(frame, steel, width)], z)]
    places = np.linspace(left, right, setting.count(2, 3) + 2)[1:-1]
    for x in places:
        wide, high = setting.between(1.4, 2.2), setting.between(1.2, 1.7)
        colour = BLUE if setting.chance(0.7) else (30, 116, 74)
        face = camera.standing(float(x), z - 0.02, box(-wide, 6.4 - high, wide, 6.4 + high))
        parts = [Part(face, colour, glow=0.12)]
        for row in (-0.4, 0.1, 0.6):
            text = box(
                -wide * 0.75,
                6.3 + row * high,
                wide * setting.between(-0.1, 0.7),
                6.3 + row * high + 0.28,
            )
            parts.append(
                Part(camera.standing(float(x), z - 0.02, text), WHITE, solid=False, glow=0.1)
            )
        items.append(SceneObject("traffic sign", parts, z - 0.02, grain=("fine", 0.0)))
    return items


def road_sign(setting: Setting, x: float, z: float) -> list[SceneObject]:
    """A large direction sign on two posts beside a highway."""
    camera = setting.camera
    items = []
    for leg in (-1.1, 1.1):
        items.append(SceneObject("pole", [_post(setting, x + leg, z, 0, 2.6, 0.14)], z))
    colour = BLUE if setting.chance(0.6) else (242, 200, 40)
    ink = WHITE if colour == BLUE else (30, 30, 30)
    parts = [Part(camera.standing(x, z - 0.02, box(-1.7, 2.2, 1.7, 4.4)), colour, glow=0.12)]
    for low in (2.6, 3.2, 3.8):
        text = box(-1.4, low, setting.between(0.0, 1.3), low + 0.28)
        parts.append(Part(camera.standing(x, z - 0.02, text), ink, solid=False))
    items.append(SceneObject("traffic sign", parts, z - 0.02, grain=("fine", 0.0)))
    return items


def bin_or_box(setting: Setting, x: float, z: float) -> SceneObject:
    """A waste bin or switch box, which Cityscapes labels "static" and does not evaluate."""
    wide, tall = setting.between(0.5, 0.9), setting.between(0.9, 1.4)
    colour = setting.pick(((66, 74, 70), (126, 126, 122), (84, 66, 48)))
    body = setting.camera.standing(x, z, box(-wide / 2, 0, wide / 2, tall))
    lid = setting.camera.standing(x, z, box(-wide / 2, tall - 0.16, wide / 2, tall))
    return SceneObject("static", [Part(body, colour), Part(lid, shade(colour, 0.7))], z)
