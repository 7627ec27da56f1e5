"""What stands along the street: buildings, walls, fences and vegetation."""

from __future__ import annotations

import numpy as np

from .camera import Points
from .scene import Colour, Part, SceneObject, Setting, shade
from .shapes import blob, limb

FACADES: tuple[Colour, ...] = (
    (198, 178, 150), (176, 122, 96), (206, 196, 176), (158, 146, 138), (190, 152, 104),
    (148, 104, 90), (184, 186, 184), (214, 188, 158),
)  # fmt: skip
PANE: Colour = (66, 78, 92)
LAMPLIGHT: Colour = (250, 206, 128)
LEAVES: tuple[Colour, ...] = ((58, 92, 44), (74, 104, 48), (48, 80, 52), (92, 110, 50))


def _slope(
    setting: Setting, x: float, near: float, far: float
) -> tuple[float, float, float, float]:
    camera = setting.camera
    return camera.point(x, 0, near)[0], near, camera.point(x, 0, far)[0], far


def building(setting: Setting, x: float, near: float, far: float, tall: float) -> list[SceneObject]:
    """A house whose facade runs along the street at lateral position ``x`` (metres)."""
    camera, rng = setting.camera, setting.rng
    colour = setting.pick(FACADES)
    side = 1.0 if x > 0 else -1.0
    parts = [Part(camera.upright(x, -0.3, tall, near, far), colour)]
    floor = setting.between(2.9, 3.6)
    bay = setting.between(2.2, 3.6)
    floors, bays = max(1, int(tall / floor)), max(1, int((far - near) / bay))
    frame = shade(colour, setting.between(0.72, 1.22))
    shop = setting.chance(0.45)
    if shop:
        colours: tuple[Colour, ...] = ((96, 60, 52), (60, 72, 66), (110, 104, 96))
        parts.append(
            Part(camera.upright(x, 0.0, 3.0, near, far), setting.pick(colours), solid=False)
        )
    step = (far - near) / bays
    for level in range(floors):
        low = level * floor + (0.5 if shop and level == 0 else 1.0)
        high = min(low + (2.0 if shop and level == 0 else 1.6), tall - 0.3)
        if high - low < 0.7:
            continue
        for index in range(bays):
            start = near + (index + 0.22) * step
            window = camera.upright(x, low, high, start, start + step * 0.56)
            if (
                np.ptp(window[:, 0]) < 1.6
                or window[:, 0].max() < 0
                or window[:, 0].min() > camera.width
            ):
                continue
            lit = setting.lit and rng.random() < (0.6 if shop and level == 0 else 0.24)
            pane = LAMPLIGHT if lit else shade(PANE, float(rng.uniform(0.75, 1.3)))
            if np.ptp(window[:, 0]) > 5:
                border = camera.upright(
                    x, low - 0.12, high + 0.12, start - 0.12, start + step * 0.56 + 0.12
                )
                parts.append(Part(border, frame, solid=False))
            parts.append(Part(window, pane, solid=False, glow=0.45 if lit else 0.0))
    slope = _slope(setting, x, near, far)
    front = SceneObject(
        "building",
        parts,
        near,
        3,
        slope=slope,
        base=(colour, shade(colour, 0.86)),
        grain=("coarse", 0.05),
    )
    # The gable towards the camera shows wherever the next house is lower or missing.
    deep = x + side * 9.0
    gable = camera.points(
        [(x, -0.3, near), (x, tall, near), (deep, tall, near), (deep, -0.3, near)]
    )
    peak = camera.points(
        [(x, tall, near), ((x + deep) / 2, tall + setting.between(0, 3), near), (deep, tall, near)]
    )
    dark = shade(colour, setting.between(0.66, 0.8))
    wall = [Part(gable, dark), Part(peak, shade(dark, 0.9))]
    for level in range(floors):
        for across in (3.0, 6.0):
            centre = x + side * across
            corners = [
                (centre - 0.5, 1.0),
                (centre + 0.5, 1.0),
                (centre + 0.5, 2.5),
                (centre - 0.5, 2.5),
            ]
            window = camera.points([(cx, cy + level * floor, near) for cx, cy in corners])
            if np.ptp(window[:, 0]) >= 2 and level * floor + 2.5 < tall:
                wall.append(Part(window, shade(PANE, 0.9), solid=False))
    return [SceneObject("building", wall, near + 0.05, 3, grain=("coarse", 0.05)), front]


def wall(setting: Setting, x: float, near: float, far: float, tall: float) -> SceneObject:
    """A free-standing wall along the street with visible courses and posts."""
    camera = setting.camera
    colour = setting.pick(((146, 138, 132), (160, 120, 102), (128, 130, 134)), 8)
    parts = [Part(camera.upright(x, -0.1, tall, near, far), colour)]
    line = shade(colour, 0.74)
    for low in np.arange(0.5, tall, 0.5):
        course = camera.points([(x, float(low), near), (x, float(low), far)])
        parts.append(Part(course, line, 1.0, solid=False))
    for z in np.arange(near, far, 3.0):
        post = camera.upright(x, 0, tall, float(z), float(z) + 0.25)
        parts.append(Part(post, shade(colour, 0.84), solid=False))
    cap = camera.upright(x, tall - 0.14, tall, near, far)
    parts.append(Part(cap, shade(colour, 1.2), solid=False))
    slope = _slope(setting, x, near, far)
    return SceneObject(
        "wall",
        parts,
        near,
        4,
        slope=slope,
        base=(colour, shade(colour, 0.85)),
        grain=("coarse", 0.08),
    )


def fence(setting: Setting, x: float, near: float, far: float, tall: float) -> SceneObject:
    """A fence of bars; what is behind it shows between them, yet the whole is labelled fence."""
    camera = setting.camera
    colour = setting.pick(((60, 66, 64), (120, 126, 128), (128, 92, 60)), 8)
    quad = camera.upright(x, 0.0, tall, near, far)
    # Only the silhouette: the colour of this part is hidden under the lines below.
    parts = [Part(np.concatenate([quad, quad[:1]]), shade(colour, 0.8), 1.0, ring=True)]
    spacing = 0.4
    for z in np.arange(near, far, spacing):
        thick = 0.05 * camera.scale(float(z))
        if thick < 0.12:
            break
        bar = camera.points([(x, 0, float(z)), (x, tall, float(z))])
        parts.append(Part(bar, colour, max(1.0, thick), solid=False))
    for high in (0.14 * tall, 0.9 * tall):
        rail = camera.upright(x, high, high + 0.09, near, far)
        parts.append(Part(rail, shade(colour, 1.1), solid=False))
    return SceneObject(
        "fence", parts, near, 4, slope=_slope(setting, x, near, far), grain=("fine", 0.04)
    )


def guard_rail(setting: Setting, x: float, near: float, far: float) -> SceneObject:
    """A steel crash barrier, which Cityscapes labels but does not evaluate."""
    camera = setting.camera
    steel: Colour = (168, 172, 176)
    parts = [Part(camera.upright(x, 0.42, 0.78, near, far), steel)]
    parts.append(Part(camera.upright(x, 0.56, 0.62, near, far), shade(steel, 0.7), solid=False))
    for z in np.arange(near, min(far, 40.0), 4.0):
        parts.append(
            Part(camera.upright(x, 0.0, 0.5, float(z), float(z) + 0.12), shade(steel, 0.6))
        )
    return SceneObject("guard rail", parts, near, 4, slope=_slope(setting, x, near, far))


def _foliage(setting: Setting, crown: Points, colour: Colour, tufts: int) -> list[Part]:
    # Lighter and darker tufts inside the crown make it look like leaves rather than paint.
    low, high = crown.min(axis=0), crown.max(axis=0)
    size = float((high - low).mean()) * 0.16
    parts = [Part(crown, colour)]
    if size < 0.8 or high[0] < 0 or low[0] > setting.camera.width:
        return parts  # tufts would not be seen
    for _ in range(tufts):
        x, y = (float(v) for v in setting.rng.uniform(low, high))
        lightness = 1.22 - 0.5 * (y - low[1]) / max(float(high[1] - low[1]), 1.0)
        tuft = blob(
            setting.rng,
            x,
            y,
            size * setting.between(0.5, 1.2),
            size * setting.between(0.4, 0.9),
            0.3,
        )
        parts.append(
            Part(tuft, shade(colour, lightness + setting.between(-0.12, 0.12)), solid=False)
        )
    return parts


def tree(setting: Setting, x: float, z: float, tall: float) -> SceneObject:
    """A tree with a trunk and an irregular crown of several lobes."""
    camera, rng = setting.camera, setting.rng
    colour = setting.pick(LEAVES, 7)
    column, row = camera.point(x, 0, z)
    scale = camera.scale(z)
    trunk = limb(
        column,
        row,
        column + setting.between(-0.3, 0.3) * scale,
        row - 0.55 * tall * scale,
        max(2.0, 0.3 * scale),
    )
    parts = [Part(trunk, setting.pick(((78, 62, 50),)))]
    middle = row - 0.66 * tall * scale
    wide, high = setting.between(0.26, 0.36) * tall * scale, 0.34 * tall * scale
    for lobe in range(3):
        shift = (lobe - 1) * 0.5 * wide
        crown = blob(
            rng,
            column + shift,
            middle - setting.between(-0.2, 0.25) * high,
            wide * 0.75,
            high * setting.between(0.7, 1.0),
        )
        parts += _foliage(setting, crown, colour, 9)
    shadow = (column, row, wide * 0.8, 0.1 * wide + 1)
    return SceneObject("vegetation", parts, z, shadow=shadow, grain=("leafy", 0.2))


def hedge(setting: Setting, x: float, near: float, far: float, tall: float) -> list[SceneObject]:
    """Bushes in a row along the street."""
    items = []
    camera = setting.camera
    colour = setting.pick(LEAVES, 7)
    z = near
    while z < far:
        scale = camera.scale(z)
        column, row = camera.point(x + setting.between(-0.4, 0.4), 0, z)
        high = tall * setting.between(0.65, 1.15) * scale
        crown = blob(setting.rng, column, row - 0.46 * high, 1.25 * tall * scale, 0.56 * high)
        crown[:, 1] = np.minimum(crown[:, 1], row)
        items.append(
            SceneObject(
                "vegetation", _foliage(setting, crown, colour, 12), z, 4, grain=("leafy", 0.2)
            )
        )
        z += max(2.2 * tall, 0.14 * z)
    return items
