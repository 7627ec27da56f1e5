"""The places scenes are set in: what their background consists of and what stands there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drawn.streetscapes.camera import Camera
from drawn.streetscapes.scene import Colour, Setting

#: Colours of stuff, at the top and at the bottom of where it shows, and its kind of texture.
STUFF: dict[str, tuple[Colour, Colour, str, float]] = {
    "sky-other-merged": ((96, 150, 226), (190, 216, 240), "coarse", 0.02),
    "mountain-merged": ((104, 108, 134), (128, 132, 140), "fine", 0.07),
    "tree-merged": ((44, 92, 42), (58, 106, 50), "leafy", 0.2),
    "grass-merged": ((112, 160, 66), (84, 140, 48), "leafy", 0.1),
    "sea": ((40, 104, 150), (72, 150, 176), "fine", 0.06),
    "sand": ((226, 206, 156), (206, 180, 124), "fine", 0.05),
    "building-other-merged": ((168, 130, 112), (150, 112, 96), "coarse", 0.05),
    "road": ((106, 106, 112), (82, 82, 88), "fine", 0.05),
    "pavement-merged": ((172, 168, 162), (150, 146, 140), "fine", 0.04),
    "wall-other-merged": ((222, 208, 178), (206, 190, 160), "coarse", 0.02),
    "floor-wood": ((176, 124, 76), (148, 98, 56), "fine", 0.04),
    "rug-merged": ((150, 60, 70), (126, 46, 60), "leafy", 0.06),
    "snow": ((236, 240, 246), (216, 224, 236), "coarse", 0.02),
}

#: Which of the classes covers each pixel: an index into a list of names, (H, W).
Layers = Callable[[Setting], list[tuple[str, np.ndarray]]]


@dataclass(frozen=True)
class Place:
    """One kind of scene.

    Attributes:
        layers: makes the background: stuff and where it covers what was before it, back to front.
        things: how often each class stands there, relative to the others.
        crowds: how likely a far group of people is.
        deepest: how far away the things may be, in metres.
        share: how often such a place is shown, relative to the others.
    """

    layers: Layers
    things: dict[str, float]
    crowds: float
    deepest: float = 14.0
    share: float = 1.0


def grid(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Rows, shape (H, 1), and columns, shape (1, W), of the middles of all pixels."""
    return np.arange(camera.height)[:, None] + 0.5, np.arange(camera.width)[None, :] + 0.5


def _skyline(setting: Setting, height: float, waves: int) -> np.ndarray:
    """Rows of a wavy line ``height`` pixels above the horizon, shape (1, W)."""
    camera = setting.camera
    _, columns = grid(camera)
    line = np.zeros_like(columns)
    for wave in range(1, waves + 1):
        turn = setting.between(0, 2 * np.pi)
        line += np.sin(2 * np.pi * wave * columns / camera.width + turn) / wave
    return camera.horizon - height * (1 + 0.3 * line)


def _whole(setting: Setting) -> np.ndarray:
    return np.ones((setting.camera.height, setting.camera.width), bool)


def _meadow(setting: Setting) -> list[tuple[str, np.ndarray]]:
    rows, _ = grid(setting.camera)
    tall = setting.camera.height * setting.between(0.08, 0.2)
    behind = "tree-merged" if setting.chance(0.6) else "mountain-merged"
    return [
        ("sky-other-merged", _whole(setting)),
        (behind, rows > _skyline(setting, tall, 6 if behind == "tree-merged" else 3)),
        ("grass-merged", rows > _skyline(setting, 1.0, 2)),
    ]


def _beach(setting: Setting) -> list[tuple[str, np.ndarray]]:
    rows, _ = grid(setting.camera)
    depth = setting.camera.height * setting.between(0.06, 0.14)
    return [
        ("sky-other-merged", _whole(setting)),
        ("sea", (rows > setting.camera.horizon) & _whole(setting)),
        ("sand", rows > _skyline(setting, -depth, 2)),
    ]


def _street(setting: Setting) -> list[tuple[str, np.ndarray]]:
    camera = setting.camera
    rows, columns = grid(camera)
    tall = camera.height * setting.between(0.25, 0.5)
    house = np.floor(3 * columns / camera.width + setting.between(0, 1)).astype(int)
    roofs = camera.horizon - tall * setting.rng.uniform(0.5, 1.2, 6)[house]
    kerb = camera.horizon + camera.focal * camera.eye / setting.between(7.0, 9.0)
    return [
        ("sky-other-merged", _whole(setting)),
        ("building-other-merged", rows > roofs),
        ("road", (rows > camera.horizon + 2) & _whole(setting)),
        ("pavement-merged", (rows > kerb) & _whole(setting)),
    ]


def _room(setting: Setting) -> list[tuple[str, np.ndarray]]:
    camera = setting.camera
    rows, columns = grid(camera)
    skirting = camera.horizon + camera.focal * camera.eye / 7.0
    layers = [
        ("wall-other-merged", _whole(setting)),
        ("floor-wood", (rows > skirting) & _whole(setting)),
    ]
    if setting.chance(0.6):
        middle = camera.width * setting.between(0.3, 0.7)
        row = (skirting + camera.height) / 2
        across = (columns - middle) / (0.4 * camera.width)
        down = (rows - row) / (0.32 * (camera.height - skirting))
        layers.append(("rug-merged", across**2 + down**2 < 1))
    return layers


def _hills(setting: Setting) -> list[tuple[str, np.ndarray]]:
    rows, _ = grid(setting.camera)
    tall = setting.camera.height * setting.between(0.12, 0.22)
    return [
        ("sky-other-merged", _whole(setting)),
        ("mountain-merged", rows > _skyline(setting, tall, 4)),
        ("snow", rows > _skyline(setting, 2.0, 3)),
    ]


PLACES: tuple[Place, ...] = (
    Place(
        _meadow,
        {"person": 4, "dog": 2, "sports ball": 2, "kite": 2, "umbrella": 1, "chair": 1},
        crowds=0.25,
    ),
    Place(
        _beach,
        {"person": 4, "umbrella": 3, "sports ball": 2, "kite": 2, "dog": 1, "bottle": 1},
        crowds=0.3,
        deepest=10.0,
    ),
    Place(
        _street,
        {"car": 4, "person": 4, "bus": 1.5, "stop sign": 2, "dog": 1, "umbrella": 0.5},
        crowds=0.25,
        deepest=16.0,
        share=2.0,
    ),
    Place(
        _room,
        {"chair": 4, "bottle": 4, "person": 2, "dog": 1, "sports ball": 1},
        crowds=0.0,
        deepest=6.5,
        share=1.5,
    ),
    Place(_hills, {"person": 4, "dog": 2, "kite": 1, "sports ball": 1}, crowds=0.2),
)
