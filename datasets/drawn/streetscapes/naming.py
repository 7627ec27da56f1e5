"""Which image gets which name and character, and which files belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import SPLITS
from .scene import CHARACTERS

#: Invented cities; no city occurs in both splits, as in Cityscapes.
CITIES = {
    "train": ("arlenbruck", "feldingen", "morvane", "norrbeck", "quillhaven", "tessarow"),
    "val": ("lindrath", "ostermoor", "vasselby"),
}

#: Endings of the files in gtFine.
ANNOTATION_KINDS = ("polygons.json", "labelIds.png", "labelTrainIds.png", "instanceIds.png")


@dataclass(frozen=True)
class Job:
    """One image to be made.

    Attributes:
        split: "train" or "val".
        index: its place in the split.
        name: of its files.
        character: one of ``CHARACTERS``.
        density: how much there is to see, from 0, an empty highway, to 1, a dense town; None as
            scenes of its character have it.
    """

    split: str
    index: int
    name: str
    character: str
    density: float | None = None


def plan_split(split: str, count: int, seed: int, unequal: float | None = None) -> list[Job]:
    """The images of one split: cities in turn, characters evenly shared and shuffled.

    With ``unequal`` in [0, 1] it is densities that are evenly shared, over (1 ± ``unequal``) / 2.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    if unequal is not None:
        steps = (np.arange(count) + 0.5) / count - 0.5  # in (-1/2, 1/2)
        densities = rng.permutation(0.5 + unequal * steps)
        return [
            Job(split, index, _name(split, index), _place(density), float(density))
            for index, density in enumerate(densities)
        ]
    # Shuffled in full, so neither the city nor the number in it tells the character.
    characters = rng.permutation([CHARACTERS[i % len(CHARACTERS)] for i in range(count)])
    return [
        Job(split, index, _name(split, index), str(characters[index])) for index in range(count)
    ]


def _name(split: str, index: int) -> str:
    cities = CITIES[split]
    return f"{cities[index % len(cities)]}_{index // len(cities):06d}_000019"


def _place(density: float) -> str:
    return "highway" if density < 0.5 else "town"


def image_file(split: str, name: str) -> Path:
    """Path of an image below the "cityscapes" folder."""
    return Path("leftImg8bit", split, name.split("_")[0], f"{name}_leftImg8bit.png")


def annotation_file(split: str, name: str, kind: str) -> Path:
    """Path of one of the ``ANNOTATION_KINDS`` below the "cityscapes" folder."""
    return Path("gtFine", split, name.split("_")[0], f"{name}_gtFine_{kind}")


def image_files(split: str, name: str) -> list[Path]:
    """All files of one image below the "cityscapes" folder, the image itself last."""
    annotations = [annotation_file(split, name, kind) for kind in ANNOTATION_KINDS]
    return [*annotations, image_file(split, name)]
