"""What was generated with which settings, and which subset every image belongs to."""

from __future__ import annotations

import os
from pathlib import Path

from divdr.data.drawn_sets import SPLITS, SUBSET_FOLDER, SUBSET_RECORD, SUBSETS_FILE

from ..files import DrawnSet

#: Raised whenever the same settings would give different files.
VERSION = 2


def image_file(split: str, name: str) -> Path:
    """Path of a picture below the "subsets" folder."""
    return Path("images", split, f"{name}.png")


def label_file(split: str, name: str) -> Path:
    """Path of its classes below the "subsets" folder."""
    return Path("labels", split, f"{name}.png")


def scenes_below(root: str | os.PathLike[str]) -> DrawnSet:
    """The data set in the folder "subsets" of ``root``, whether it exists or not."""
    return DrawnSet(
        folder=Path(root) / SUBSET_FOLDER,
        record_name=SUBSET_RECORD,
        version=VERSION,
        image_files=lambda split, name: [image_file(split, name), label_file(split, name)],
        own_folders=tuple(Path(top, split) for top in ("images", "labels") for split in SPLITS),
        summaries=(Path(SUBSETS_FILE),),
    )
