"""The record of what was generated with which settings, and whether it is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from divdr.errors import DataError

from .naming import SPLITS, image_files

#: Raised whenever the same settings would give different files.
VERSION = 1

RECORD = "streetscapes.json"
CHARACTERS_FILE = "characters.json"
PARTIAL = ".partial"


def write_atomically(path: Path, content: bytes, partial: Path) -> None:
    """Writes a file so that it either has all its content or does not exist.

    Args:
        partial: folder of the same file system where the file grows. Not the folder of ``path``:
            Detectron2 takes every file beside the images for an image.
    """
    partial.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = partial / f"{os.getpid()}_{path.name}"
    growing.write_bytes(content)
    os.replace(growing, path)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically beside the data."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, text.encode(), path.parent / PARTIAL)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a "cityscapes" folder, or None if there is none.

    Raises:
        DataError: the record cannot be understood.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if not isinstance(record["complete"], bool) or not isinstance(record["settings"], dict):
            raise TypeError
        for split in SPLITS:
            if not all(isinstance(name, str) for name in record["images"][split]):
                raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged; delete the folder {folder} and generate it again."
        ) from error
    return record


def recorded_files(record: dict[str, Any]) -> set[Path]:
    """All image and annotation files that a record speaks of, below the "cityscapes" folder."""
    return {
        path
        for split in SPLITS
        for name in record["images"][split]
        for path in image_files(split, name)
    }


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
    folder = Path(root) / "cityscapes"
    record = read_record(folder)
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
