"""One scene from nothing: plan, outlines, what remains visible, picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from divdr.errors import ConfigError

from . import ground, layout
from .canvas import Canvas, make_noise, polygon_mask
from .finish import develop
from .scene import CHARACTERS, SceneObject, Setting
from .shapes import outline

#: Smallest picture in which the objects of a street still have a shape.
SMALLEST = (64, 128)

#: What a thinly peopled scene has fewer of.
_COUNTED = (
    *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    *("traffic sign", "traffic light", "pole"),
)

Outlined = tuple[SceneObject, list[list[int]]]


def check_size(height: int, width: int) -> None:
    """Raises ConfigError unless a scene of this size in pixels can be drawn."""
    if height < SMALLEST[0] or width < SMALLEST[1]:
        raise ConfigError(
            f"Street scenes need at least {SMALLEST[0]} x {SMALLEST[1]} pixels (height x width), "
            f"not {height} x {width}."
        )


def _plan(
    character: str, height: int, width: int, rng: np.random.Generator, density: float | None
) -> tuple[Setting, list[SceneObject]]:
    if character in ("highway", "town"):
        place = character
    else:
        place = "town" if rng.random() < 0.6 else "highway"
    camera = layout.make_camera(height, width, rng, wide_open=place == "highway")
    setting = Setting(camera, rng, lit=character == "night", wet=character == "rain")
    if place == "highway":
        items = layout.highway(setting)
    else:
        crowded = 1.0 if character == "town" else 0.7
        items = layout.town(setting, crowded if density is None else 4.0 * density - 2.0)
    if density is not None:
        items = _thinned(items, setting, 2.0 * density if place == "highway" else density + 0.25)
    if setting.chance(0.8):
        items.append(ground.bonnet(setting))
    # Stable: objects of equal layer and depth keep the order in which they were planned.
    return setting, sorted(items, key=lambda item: (item.layer, -item.depth))


def _thinned(items: list[SceneObject], setting: Setting, share: float) -> list[SceneObject]:
    """About a share of the objects that can be counted, and all the others."""
    return [
        item
        for item in items
        if item.label.removesuffix("group") not in _COUNTED or setting.chance(share)
    ]


def _visible(outlined: list[Outlined], height: int, width: int) -> list[Outlined]:
    # Objects of which next to nothing shows would be labels without evidence in the picture.
    owner = np.full((height, width), -1, np.int32)
    for index, (_, polygon) in enumerate(outlined):
        rows, columns, mask = polygon_mask(polygon, height, width)
        owner[rows, columns][mask] = index
    shown = np.bincount(owner[owner >= 0], minlength=len(outlined))
    least = max(6, round(1.0e-4 * height * width))
    # Sky and land stay in any case, since they show wherever something else is left out.
    return [
        (item, polygon)
        for (item, polygon), pixels in zip(outlined, shown, strict=True)
        if pixels >= least or item.layer <= 1
    ]


def draw_scene(
    character: str,
    height: int,
    width: int,
    rng: np.random.Generator,
    density: float | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws one street scene.

    Args:
        character: one of ``CHARACTERS``.
        height, width: size in pixels, at least 64 x 128.
        rng: source of all that varies; the same state gives the same scene.
        density: how much there is to see, in [0, 1]: on a highway, from no traffic at 0 to all of
            it at 1/2; in a town, from few people at 1/2 to twice the usual crowd at 1. None draws
            what scenes of the character have.

    Returns:
        The picture, uint8 (H, W, 3) in RGB, and its annotation in the form of Cityscapes'
        ``polygons.json``: imgHeight, imgWidth and objects, back to front, each with a label and a
        polygon of whole pixel coordinates [[x, y], ...] inside the picture.

    Raises:
        ConfigError: the character is unknown or the size too small.
    """
    if character not in CHARACTERS:
        raise ConfigError(
            f"Unknown character {character!r}; choose one of {', '.join(CHARACTERS)}."
        )
    check_size(height, width)
    setting, items = _plan(character, height, width, rng, density)
    outlined: list[Outlined] = []
    for item in items:
        polygon = outline(item.parts, height, width)
        if polygon is not None:
            outlined.append((item, polygon))
    outlined = _visible(outlined, height, width)
    canvas = Canvas(setting.camera, make_noise(height, width, rng))
    for item, polygon in outlined:
        canvas.paint(item, polygon)
    objects = [{"label": item.label, "polygon": polygon} for item, polygon in outlined]
    annotation = {"imgHeight": height, "imgWidth": width, "objects": objects}
    return develop(canvas, setting, character), annotation
