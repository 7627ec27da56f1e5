"""What was generated with which settings, and which subset every image belongs to."""

from __future__ import annotations

import json
import os
from pathlib import Path

from divdr.data.drawn import SPLITS, DrawnSet
from divdr.errors import DataError

#: Raised whenever the same settings would give different files.
VERSION = 2

FOLDER = "subsets"
RECORD = "record.json"
SUBSETS_FILE = "subsets.json"


def image_file(split: str, name: str) -> Path:
    """Path of a picture below the "subsets" folder."""
    return Path("images", split, f"{name}.png")


def label_file(split: str, name: str) -> Path:
    """Path of its classes below the "subsets" folder."""
    return Path("labels", split, f"{name}.png")


def scenes_below(root: str | os.PathLike[str]) -> DrawnSet:
    """The data set in the folder "subsets" of ``root``, whether it exists or not."""
    return DrawnSet(
        folder=Path(root) / FOLDER,
        record_name=RECORD,
        version=VERSION,
        image_files=lambda split, name: [image_file(split, name), label_file(split, name)],
        own_folders=tuple(Path(top, split) for top in ("images", "labels") for split in SPLITS),
        summaries=(Path(SUBSETS_FILE),),
    )


def load_subsets(root: str | os.PathLike[str]) -> dict[str, int]:
    """The subset of every image of both splits, by the image's name without ending.

    Args:
        root: the folder that was given to ``make_subsets``.

    Raises:
        DataError: the folder holds no complete data set.
    """
    scenes = scenes_below(root)
    record = scenes.read()
    if record is None or not record["complete"]:
        raise DataError(
            f"{scenes.folder} holds no complete subsets; run datasets/make_subsets.py first"
        )
    path = scenes.folder / SUBSETS_FILE
    try:
        return {str(name): int(subset) for name, subset in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged; generate the scenes again") from error
