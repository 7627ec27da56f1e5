"""One scene from nothing: plan, what remains visible of each object, picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from divdr.errors import ConfigError
from drawn.streetscapes.canvas import Bytes, Floats, fill_part, make_noise, times
from drawn.streetscapes.finish import add_noise, soften
from drawn.streetscapes.scene import Setting, vary
from drawn.streetscapes.shapes import silhouette

from .places import STUFF, Place
from .scene import SMALLEST, make_setting, plan_scene
from .thing import Thing

#: Objects of which fewer pixels show are left out: they would be labels without evidence.
LEAST_PIXELS = 16


@dataclass
class Scene:
    """A drawn scene.

    Attributes:
        picture: uint8 (H, W, 3), RGB.
        things: the objects, far to near; every one is visible.
        owner: int (H, W), index of the thing each pixel shows, -1 for the background.
        stuff: (H, W), name of the background class of each pixel, also behind things.
    """

    picture: Bytes
    things: list[Thing]
    owner: np.ndarray
    stuff: np.ndarray


def check_size(size: int) -> None:
    """Raises ConfigError unless scenes of about this size in pixels can be drawn."""
    if size * 3 // 4 < SMALLEST:
        raise ConfigError(f"size must be at least {-(-SMALLEST * 4 // 3)} pixels, not {size}.")


def _owners(masks: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    owner = np.full(shape, -1, np.int32)
    for index, mask in enumerate(masks):
        owner[mask] = index
    return owner


def _background(
    setting: Setting, place: Place, noise: dict[str, Floats]
) -> tuple[Bytes, np.ndarray]:
    camera = setting.camera
    picture = np.zeros((camera.height, camera.width, 3), np.uint8)
    stuff = np.full((camera.height, camera.width), "", dtype=object)
    for name, mask in place.layers(setting):
        high, low, kind, grain = STUFF[name]
        high, low = vary(setting.rng, high, 12.0), vary(setting.rng, low, 12.0)
        rows = np.flatnonzero(mask.any(axis=1))
        first, last = (rows[0], rows[-1]) if len(rows) else (0, 1)
        share = np.clip((np.arange(camera.height) - first) / max(last - first, 1), 0, 1)
        colours = (1 - share[:, None]) * high + share[:, None] * np.array(low)
        patch = np.broadcast_to(colours[:, None], picture.shape).round().astype(np.uint8)
        picture[mask] = times(patch, 1 + grain * noise[kind])[mask]
        stuff[mask] = name
    return picture, stuff


def _shade_ground(picture: Bytes, shadow: tuple[float, float, float, float]) -> Bytes:
    column, row, half_width, half_height = shadow
    height, width = picture.shape[:2]
    across = (np.arange(width) + 0.5 - column) / max(half_width, 1)
    down = (np.arange(height) + 0.5 - row) / max(half_height, 1)
    inside = np.clip(1.2 - across[None, :] ** 2 - down[:, None] ** 2, 0, 1)
    return times(picture, 1 - 0.45 * inside)


def _develop(picture: Bytes, setting: Setting) -> Bytes:
    # Light differs from one picture to the next: its strength, its warmth and where it falls from.
    image: Floats = picture.astype(np.float32) / 255
    slope = setting.between(-0.18, 0.18)
    image = image * (1 + slope * np.linspace(-1, 1, image.shape[1], dtype=np.float32)[:, None])
    warm = setting.between(-0.08, 0.08)
    image = image * np.array([1 + warm, 1, 1 - warm], np.float32) * setting.between(0.7, 1.15)
    image = 0.5 + setting.between(0.75, 1.0) * (image - 0.5)
    image = add_noise(
        soften(image, setting.between(0.4, 0.7)), setting, setting.between(0.01, 0.03)
    )
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def draw_scene(height: int, width: int, rng: np.random.Generator, *, empty: bool = False) -> Scene:
    """Draws one scene.

    Args:
        height, width: size in pixels, at least 64 each.
        rng: source of all that varies; the same state gives the same scene.
        empty: whether there are to be no objects.

    Raises:
        ConfigError: the picture would be too small.
    """
    if min(height, width) < SMALLEST:
        raise ConfigError(f"scenes need at least {SMALLEST} pixels a side, not {height} x {width}.")
    setting = make_setting(height, width, rng)
    place, things = plan_scene(setting, empty)
    noise = make_noise(height, width, rng)
    picture, stuff = _background(setting, place, noise)
    masks = [silhouette(thing.parts, (height, width)).astype(bool) for thing in things]
    shown = np.bincount(_owners(masks, (height, width)).ravel() + 1, minlength=len(things) + 1)
    kept = [index for index in range(len(things)) if shown[index + 1] >= LEAST_PIXELS]
    things, masks = [things[i] for i in kept], [masks[i] for i in kept]
    for thing, mask in zip(things, masks, strict=True):
        if thing.shadow:
            picture = _shade_ground(picture, thing.shadow)
        patch = picture.copy()
        for part in thing.parts:
            fill_part(patch, part, part.colour)
        picture[mask] = times(patch, 1 + 0.04 * noise["fine"])[mask]
    return Scene(_develop(picture, setting), things, _owners(masks, (height, width)), stuff)
