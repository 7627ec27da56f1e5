"""The record of what was generated with which settings, and whether it is complete."""

from __future__ import annotations

import os
from pathlib import Path

from divdr.data.drawn_sets import CHARACTERS_FILE, NEEDS_FILE, SPLITS, STREET_FOLDER, STREET_RECORD

from ..files import DrawnSet
from .naming import image_files

#: Raised whenever the same settings would give different files.
VERSION = 1


def scenes_below(root: str | os.PathLike[str]) -> DrawnSet:
    """The data set in the folder "cityscapes" of ``root``, whether it exists or not."""
    return DrawnSet(
        folder=Path(root) / STREET_FOLDER,
        record_name=STREET_RECORD,
        version=VERSION,
        image_files=image_files,
        own_folders=tuple(
            Path(top, split) for top in ("leftImg8bit", "gtFine") for split in SPLITS
        ),
        summaries=(Path(CHARACTERS_FILE), Path(NEEDS_FILE)),
    )
