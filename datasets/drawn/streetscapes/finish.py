"""Light and weather: turns the evenly lit canvas into a photograph-like picture."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import Canvas, Floats
from .scene import Setting


def soften(image: Floats, sigma: float) -> Floats:
    """The image blurred as by a lens; ``sigma`` in pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def _glow(light: Floats, unit: float) -> Floats:
    # Halos of lamps: wide blurs are computed on a smaller picture, where they cost little.
    height, width = light.shape[:2]
    size = max(2, width // 4), max(2, height // 4)
    small = np.asarray(cv2.resize(light, size, interpolation=cv2.INTER_AREA), np.float32)
    halo = soften(small, max(0.8, 2.2 * unit)) + 0.6 * soften(small, max(1.0, 7.0 * unit))
    return np.asarray(cv2.resize(halo, (width, height)), np.float32)


def _haze(image: Floats, depth: Floats, reach: float, colour: Floats, most: float) -> Floats:
    # Distant things take the colour of the air; the sky has it already.
    share = np.minimum(1 - np.exp(-depth / reach), most)
    share[depth > 1e4] = 0
    return image + share[..., None] * (colour - image)


def add_noise(image: Floats, setting: Setting, strength: float) -> Floats:
    """The image (H, W, 3) with the noise of a camera of this standard deviation."""
    grain = setting.rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None]
    # The red and blue channels also stray from the green one, as in cameras.
    stray = np.roll(grain, 7, axis=1) * np.array([0.4, 0, -0.4], np.float32)
    return image + strength * (grain + stray)


def _day(image: Floats, canvas: Canvas, setting: Setting) -> Floats:
    warm = setting.between(-0.05, 0.06)
    image = image * np.array([1 + warm, 1, 1 - warm], np.float32) * setting.between(0.88, 1.1)
    air = np.array([0.76, 0.81, 0.87], np.float32)
    return _haze(image, canvas.depth, setting.between(350, 900), air, 0.45)


def _night(image: Floats, canvas: Canvas, setting: Setting) -> Floats:
    camera = canvas.camera
    unit = camera.height / 256
    light = canvas.light.astype(np.float32) / 255
    halo = _glow(light, unit)
    rows = np.arange(camera.height, dtype=np.float32)[:, None]
    columns = np.arange(camera.width, dtype=np.float32)[None, :]
    # The headlights of the camera's own car: strongest straight ahead, below the horizon.
    beam = np.exp(-(((columns - camera.vanish) / (0.34 * camera.width)) ** 2))
    beam = (
        beam
        * np.exp(-canvas.depth / 32)
        * np.clip((rows - camera.horizon) / (0.1 * camera.height) + 0.8, 0.1, 1)
    )
    tint = np.array([0.86, 0.93, 1.12], np.float32)
    ambient = setting.between(0.24, 0.38) * tint
    lit = image * (ambient + 0.6 * beam[..., None] + 1.1 * np.minimum(halo, 0.8))
    sky = (canvas.depth > 1e4)[..., None]
    lit = np.where(sky, image * tint * 0.17, lit)
    return lit + light * 0.85 + 0.26 * np.minimum(halo, 1.5)


def _reflect(image: Floats, canvas: Canvas, setting: Setting) -> Floats:
    # Wet tarmac mirrors what stands above the horizon, smeared from top to bottom.
    camera = canvas.camera
    mirrored = np.clip(2 * camera.horizon - np.arange(camera.height), 0, camera.height - 1).astype(
        int
    )
    smear = max(3, round(0.05 * camera.height))
    reflection = cv2.blur(image[mirrored], (1, smear))
    wetness = np.clip(setting.between(0.25, 0.42) + 0.1 * canvas.noise["coarse"], 0.08, 0.6)
    share = np.where(canvas.road, wetness, 0).astype(np.float32)[..., None]
    return image * (1 - share * 0.9) + share * reflection


def _streaks(image: Floats, setting: Setting) -> Floats:
    height, width = image.shape[:2]
    veil = np.zeros((height, width), np.uint8)
    slant = setting.between(-0.3, 0.3)
    for _ in range(round(width * setting.between(0.35, 0.7))):
        x, y = setting.between(0, width), setting.between(-0.1, 1) * height
        long = setting.between(0.03, 0.09) * height
        end = (round(x + slant * long), round(y + long))
        cv2.line(
            veil,
            (round(x), round(y)),
            end,
            setting.between(50, 130),
            max(1, height // 512),
            cv2.LINE_AA,
        )
    share = veil.astype(np.float32)[..., None] / 255 * 0.4
    return image + share * (0.86 - image)


def _rain(image: Floats, canvas: Canvas, setting: Setting) -> Floats:
    image = _reflect(image, canvas, setting)
    image = image + 0.5 * canvas.light.astype(np.float32) / 255
    level = setting.between(0.5, 0.64)
    air = np.array([level, level * 1.02, level * 1.05], np.float32)
    image = _haze(image * 0.85, canvas.depth, setting.between(45, 100), air, 0.82)
    grey = image.mean(axis=2, keepdims=True)
    image = grey + 0.72 * (image - grey)
    image = level + setting.between(0.62, 0.76) * (image - level)
    return _streaks(image, setting)


def develop(canvas: Canvas, setting: Setting, character: str) -> np.ndarray:
    """The finished picture.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    image: Floats = canvas.colour.astype(np.float32) / 255
    unit = canvas.camera.height / 256
    # Light falls from one side, a little differently from one picture to the next.
    slope = setting.between(-0.12, 0.12)
    image *= 1 + slope * np.linspace(-1, 1, image.shape[1], dtype=np.float32)[None, :, None]
    if character == "night":
        image = _night(image, canvas, setting)
        strength = setting.between(0.014, 0.026)
    elif character == "rain":
        image = _rain(image, canvas, setting)
        strength = setting.between(0.006, 0.012)
    else:
        image = _day(image, canvas, setting)
        strength = setting.between(0.006, 0.014)
    # The lens: just enough blur for edges like a camera's, well below one pixel of shift.
    image = soften(image, 0.45 + 0.1 * min(unit, 2.0))
    image = add_noise(image, setting, strength)
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)
