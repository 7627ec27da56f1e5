"""What lies flat: road with its markings, sidewalks, verges; and the sky above."""

from __future__ import annotations

import itertools

import numpy as np

from .scene import Colour, Part, SceneObject, Setting, shade, vary
from .shapes import blob, box

#: Depth in metres up to which ground is drawn; farther ground is less than a pixel high.
FAR = 170.0
PAINT: Colour = (226, 226, 220)


def sky(setting: Setting) -> SceneObject:
    """The whole picture as sky; everything else is painted over it."""
    camera = setting.camera
    if setting.wet:
        high = setting.pick(((168, 174, 182), (150, 156, 164)))
        low = shade(high, 1.12)
    else:
        high = setting.pick(((96, 152, 216), (130, 172, 218), (176, 192, 208), (206, 212, 216)))
        low = shade(vary(setting.rng, (212, 224, 234), 6), 1.0)
    parts = [Part(box(-2, -2, camera.width + 2, camera.horizon + 3), high)]
    return SceneObject("sky", parts, 1e5, layer=0, base=(high, low), grain=("coarse", 0.05))


def backdrop(setting: Setting, tall: tuple[float, float]) -> list[SceneObject]:
    """The far skyline: woods or houses along the horizon, heights in metres at 200 m."""
    camera, rng = setting.camera, setting.rng
    scale = camera.scale(200.0)
    wooded = setting.chance(0.55)
    columns = np.linspace(-4, camera.width + 4, 26 if wooded else 18)
    tops = rng.uniform(*tall, len(columns)) * scale
    ridge = [(float(c), camera.horizon - float(t)) for c, t in zip(columns, tops, strict=True)]
    if not wooded:
        steps: list[tuple[float, float]] = []
        for (start, top), (end, _) in itertools.pairwise(ridge):
            steps += [(start, top), (end, top)]
        ridge = steps
    # Down to where the ground begins, which is a little below the horizon.
    low = camera.point(0.0, 0.0, FAR)[1] + 2
    points = np.array([(-4.0, low), *ridge, (camera.width + 4.0, low)])
    colour = (
        setting.pick(((78, 104, 72),))
        if wooded
        else setting.pick(((150, 140, 132), (134, 132, 136)))
    )
    label = "vegetation" if wooded else "building"
    grain = ("leafy", 0.16) if wooded else ("coarse", 0.05)
    return [
        SceneObject(
            label, [Part(points, colour)], 200.0, layer=1, base=(colour, colour), grain=grain
        )
    ]


def plain(setting: Setting) -> SceneObject:
    """Open land from the horizon to the bottom, for whatever nothing else covers."""
    camera = setting.camera
    land = box(-2, camera.horizon + 1, camera.width + 2, camera.height + 2)
    colour = setting.pick(((140, 164, 76), (156, 158, 84), (164, 142, 98)), 8)
    base = (colour, colour)
    return SceneObject(
        "terrain", [Part(land, colour)], FAR, 1, ground=True, base=base, grain=("fine", 0.12)
    )


def _flat(
    setting: Setting,
    label: str,
    left: float,
    right: float,
    colour: Colour,
    grain: tuple[str, float],
) -> SceneObject:
    near = 0.6 * setting.camera.nearest_depth()
    strip = Part(setting.camera.strip(left, right, near, FAR), colour)
    base = (shade(colour, 1.1), shade(colour, 0.95))
    return SceneObject(label, [strip], FAR, layer=2, ground=True, base=base, grain=grain)


def road(
    setting: Setting, left: float, right: float, lines: list[tuple[float, bool]]
) -> SceneObject:
    """A road between two lateral positions in metres.

    Args:
        lines: lateral position of each painted line and whether it is dashed.
    """
    tone = setting.between(84, 122)
    item = _flat(setting, "road", left, right, (tone, tone, tone + 3), ("fine", 0.06))
    camera, rng = setting.camera, setting.rng
    near = 0.7 * camera.nearest_depth()
    for _ in range(setting.count(1, 4)):  # patches of other tarmac
        start, x = setting.between(near, 40.0), setting.between(left, right)
        patch = camera.strip(
            x, x + setting.between(0.6, 2.4), start, start + setting.between(2, 12)
        )
        item.parts.append(
            Part(patch, shade((tone, tone, tone), setting.between(0.82, 1.1)), solid=False)
        )
    start = float(rng.uniform(0, 9))
    for x, dashed in lines:
        if not dashed:
            stripe = camera.strip(x - 0.08, x + 0.08, near, FAR)
            item.parts.append(Part(stripe, PAINT, solid=False, glow=0.06))
            continue
        for z in np.arange(start + near - 9, 110.0, 9.0):
            if z + 4 > near:
                stripe = camera.strip(x - 0.08, x + 0.08, max(float(z), near), float(z) + 4.0)
                item.parts.append(Part(stripe, PAINT, solid=False, glow=0.06))
    return item


def crossing(setting: Setting, item: SceneObject, left: float, right: float, z: float) -> None:
    """Paints a zebra crossing at depth ``z`` onto the road object ``item``."""
    for x in np.arange(left + 0.3, right - 0.5, 1.0):
        stripe = setting.camera.strip(float(x), float(x) + 0.5, z, z + 3.0)
        item.parts.append(Part(stripe, PAINT, solid=False))


def rails(setting: Setting, item: SceneObject, x: float) -> None:
    """Paints tram rails with their middle at ``x`` onto the road object ``item``."""
    near = 0.7 * setting.camera.nearest_depth()
    for rail in (x - 0.72, x + 0.72):
        strip = setting.camera.strip(rail - 0.06, rail + 0.06, near, FAR)
        item.parts.append(Part(strip, (58, 56, 56), solid=False))


def sidewalk(setting: Setting, inner: float, outer: float) -> SceneObject:
    """A paved sidewalk between the kerb ``inner`` and ``outer``, with joints between its slabs."""
    colour = setting.pick(((172, 160, 152), (160, 156, 150), (182, 166, 150)), 7)
    left, right = min(inner, outer), max(inner, outer)
    item = _flat(setting, "sidewalk", left, right, colour, ("fine", 0.04))
    camera = setting.camera
    near = 0.7 * camera.nearest_depth()
    joint = shade(colour, 0.84)
    for z in np.arange(np.ceil(near), 34.0, 1.5):
        line = camera.points([(left, 0, float(z)), (right, 0, float(z))])
        item.parts.append(Part(line, joint, max(1.0, 0.02 * camera.scale(float(z))), solid=False))
    for x in np.arange(left + 1.0, right, 1.0):
        strip = camera.strip(float(x) - 0.015, float(x) + 0.015, near, 50.0)
        item.parts.append(Part(strip, joint, solid=False))
    toward = 0.18 if outer > inner else -0.18
    kerb = camera.strip(inner, inner + toward, near, FAR)
    item.parts.append(Part(kerb, shade(colour, 1.16), solid=False))
    return item


def terrain(setting: Setting, inner: float, outer: float) -> SceneObject:
    """Grass or bare ground beside the road."""
    colour = setting.pick(((140, 164, 76), (156, 158, 84), (164, 142, 98)), 8)
    left, right = min(inner, outer), max(inner, outer)
    item = _flat(setting, "terrain", left, right, colour, ("fine", 0.12))
    for _ in range(6):
        z = setting.between(6, 40)
        column, row = setting.camera.point(setting.between(left, right), 0, z)
        size = setting.camera.scale(z)
        spot = blob(setting.rng, column, row, 2.0 * size, 0.16 * size)
        item.parts.append(Part(spot, shade(colour, setting.between(0.8, 1.14)), solid=False))
    return item


def parking(setting: Setting, inner: float, outer: float) -> SceneObject:
    """A strip of parking bays, which Cityscapes labels but does not evaluate."""
    left, right = min(inner, outer), max(inner, outer)
    item = _flat(setting, "parking", left, right, (128, 118, 116), ("fine", 0.06))
    for z in np.arange(6.0, 50.0, 5.5):
        line = setting.camera.points([(left, 0, float(z)), (right, 0, float(z))])
        width = max(1.0, 0.1 * setting.camera.scale(float(z)))
        item.parts.append(Part(line, PAINT, width, solid=False))
    return item


def bonnet(setting: Setting) -> SceneObject:
    """The bonnet of the car that carries the camera, at the bottom of the picture."""
    camera = setting.camera
    rise = setting.between(0.035, 0.07) * camera.height
    across = np.linspace(-0.02, 1.02, 25)
    arch = camera.height - rise * np.clip(1 - (2 * across - 1) ** 4, 0, 1) - 0.5
    top = np.stack([across * camera.width, arch], axis=1)
    points = np.concatenate(
        [top, [(camera.width * 1.02, camera.height + 3), (-3, camera.height + 3)]]
    )
    colour = setting.pick(((34, 36, 40), (70, 74, 80)), 5)
    base = (shade(colour, 1.5), shade(colour, 0.8))
    return SceneObject("ego vehicle", [Part(points, colour)], 1.0, layer=9, base=base)
