"""Plans a scene: a place, a camera, and what stands where."""

from __future__ import annotations

import numpy as np

from drawn.streetscapes.camera import Camera
from drawn.streetscapes.scene import Setting

from .person import crowd
from .places import PLACES, Place
from .thing import Thing
from .things import MAKERS, clutter

#: Smallest side for which the objects still have a shape, in pixels.
SMALLEST = 64

#: How likely a heap without a label is in a picture.
_CLUTTERED = 0.3


def make_setting(height: int, width: int, rng: np.random.Generator) -> Setting:
    """A camera at the height of the eyes, for a picture of this size in pixels."""
    camera = Camera(
        height,
        width,
        focal=float(rng.uniform(0.85, 1.15)) * max(height, width),
        horizon=float(rng.uniform(0.36, 0.52)) * height,
        vanish=width / 2,
        eye=float(rng.uniform(1.3, 1.7)),
        bend=0.0,
    )
    return Setting(camera, rng)


def _spot(setting: Setting, near: float, far: float) -> tuple[float, float]:
    # Evenly in the logarithm of depth, so sizes in the picture are spread over all scales.
    z = float(np.exp(setting.between(np.log(near), np.log(far))))
    half = setting.camera.width / 2 / setting.camera.scale(z)
    return setting.between(-0.95, 0.95) * half, z


def _range(setting: Setting, name: str, place: Place) -> tuple[float, float]:
    nearest = setting.camera.nearest_depth()
    low, high = {
        "bus": (8.0, 16.0),
        "car": (6.0, 14.0),
        "kite": (6.0, 12.0),
        "bottle": (0.0, 4.0),
        "sports ball": (0.0, 6.0),
        "dog": (0.0, 7.0),
        "stop sign": (4.0, 9.0),
    }.get(name, (0.0, 16.0))
    low = max(low, 0.95 * nearest)
    return low, max(min(high, place.deepest), 1.4 * low)


def plan_scene(setting: Setting, empty: bool) -> tuple[Place, list[Thing]]:
    """The place, and the things from far to near; without things if it is to be empty."""
    rng = setting.rng
    shares = np.array([place.share for place in PLACES])
    place = PLACES[int(rng.choice(len(PLACES), p=shares / shares.sum()))]
    things: list[Thing] = []
    if setting.chance(_CLUTTERED):
        things.append(clutter(setting, *_spot(setting, setting.camera.nearest_depth(), 8.0)))
    if not empty:
        weights = np.array(list(place.things.values()))
        for name in rng.choice(list(place.things), setting.count(2, 7), p=weights / weights.sum()):
            x, z = _spot(setting, *_range(setting, str(name), place))
            things.append(MAKERS[str(name)](setting, x, z))
        if setting.chance(place.crowds):
            x, z = _spot(setting, 13.0, 18.0)
            things.append(crowd(setting, x, z, setting.count(4, 9)))
    return place, sorted(things, key=lambda thing: -thing.depth)
