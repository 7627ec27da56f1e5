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
    """One image to be made: its split, its place in it, its name and its character."""

    split: str
    index: int
    name: str
    character: str


def plan_split(split: str, count: int, seed: int) -> list[Job]:
    """The images of one split: cities in turn, characters evenly shared and shuffled."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    # Shuffled in full, so neither the city nor the number in it tells the character.
    characters = rng.permutation([CHARACTERS[i % len(CHARACTERS)] for i in range(count)])
    cities = CITIES[split]
    jobs = []
    for index in range(count):
        name = f"{cities[index % len(cities)]}_{index // len(cities):06d}_000019"
        jobs.append(Job(split, index, name, str(characters[index])))
    return jobs


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
