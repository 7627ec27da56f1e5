"""The record of what was generated with which settings, and whether it is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path

from divdr.data.drawn import SPLITS, DrawnSet
from divdr.errors import DataError

from .naming import image_files

#: Raised whenever the same settings would give different files.
VERSION = 1

RECORD = "streetscapes.json"
CHARACTERS_FILE = "characters.json"


def scenes_below(root: str | os.PathLike[str]) -> DrawnSet:
    """The data set in the folder "cityscapes" of ``root``, whether it exists or not."""
    return DrawnSet(
        folder=Path(root) / "cityscapes",
        record_name=RECORD,
        version=VERSION,
        image_files=image_files,
        own_folders=tuple(
            Path(top, split) for top in ("leftImg8bit", "gtFine") for split in SPLITS
        ),
        summaries=(Path(CHARACTERS_FILE),),
    )


def load_characters(root: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """The character of every image.

    Args:
        root: the folder that was given to ``make_streetscapes``.

    Returns:
        For "train" and "val", a dictionary from image name (CITY_SSSSSS_FFFFFF) to one of
        ``CHARACTERS``.

    Raises:
        DataError: the folder holds no complete street scenes.
    """
    scenes = scenes_below(root)
    folder = scenes.folder
    record = scenes.read()
    if record is None or not record["complete"]:
        raise DataError(
            f"{folder} holds no complete street scenes; run datasets/make_streetscapes.py first."
        )
    path = folder / CHARACTERS_FILE
    try:
        characters = json.loads(path.read_text())
        return {split: dict(characters[split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged; generate the scenes again.") from error
