"""What drawn data sets (``datasets/drawn``) say of themselves, in their JSON files.

Evaluation and pictures want to know which kind of scene an image shows; the painters themselves are
no part of the package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_sem_seg

from ..errors import DataError
from .folders import register_anew

SPLITS = ("train", "val")
"""Every drawn data set has these two."""

MAX_SUBSETS = 4
SUBSET_FOLDER = "subsets"
SUBSET_RECORD = "record.json"
SUBSETS_FILE = "subsets.json"
STREET_FOLDER = "cityscapes"
STREET_RECORD = "streetscapes.json"
CHARACTERS_FILE = "characters.json"
NEEDS_FILE = "needs.json"

SUBSET_CLASSES = ("background", *(f"class_{number}" for number in range(1, MAX_SUBSETS + 1)))
"""Those of shapes of four subsets; of K subsets there are K + 1, and digits use the first three."""

_COLOURS = ((110, 110, 110), (220, 60, 60), (60, 180, 75), (70, 110, 230), (240, 200, 50))


def read_record(folder: str | os.PathLike[str], name: str) -> dict[str, Any] | None:
    """The record of a drawn data set: "complete", "settings", and names of "images" by split.

    Args:
        folder: of the data set.
        name: of the record's file.

    Returns:
        None if there is none.

    Raises:
        DataError: the record cannot be understood.
    """
    path = Path(folder) / name
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if not isinstance(record["complete"], bool) or not isinstance(record["settings"], dict):
            raise TypeError
        for split in SPLITS:
            if not all(isinstance(image, str) for image in record["images"][split]):
                raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged; delete the folder {folder} and generate it again."
        ) from error
    return record


def load_characters(root: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """The character of every drawn street scene.

    Args:
        root: the folder that was given to ``make_streetscapes``.

    Returns:
        For "train" and "val", a dictionary from image name (CITY_SSSSSS_FFFFFF) to "highway",
        "town", "night" or "rain".

    Raises:
        DataError: the folder holds no complete street scenes.
    """
    folder = Path(root) / STREET_FOLDER
    record = read_record(folder, STREET_RECORD)
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


def load_needs(root: str | os.PathLike[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """How much there is to see in every drawn street scene, to hold against what it costs.

    Args:
        root: the folder that was given to ``make_streetscapes``.

    Returns:
        For "train" and "val", a dictionary from image name (CITY_SSSSSS_FFFFFF) to "objects", the
        number of objects of the eight classes with instances, "sizes", their visible pixels,
        rising, and "density" as it was drawn, None without ``--unequal``.

    Raises:
        DataError: the folder holds no complete street scenes, or such of an earlier version.
    """
    load_characters(root)  # says what is wrong with the folder
    path = Path(root) / STREET_FOLDER / NEEDS_FILE
    try:
        needs = json.loads(path.read_text())
        return {split: dict(needs[split]) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged; generate the scenes again.") from error


@dataclass(frozen=True)
class DrawnScene:
    """The truth of one image of street scenes or of scenes of garments.

    Attributes:
        labels: picture of its classes, 255 where there is none.
        objects: how many it shows.
    """

    labels: Path
    objects: int


def load_scenes(images: Iterable[str | os.PathLike[str]]) -> list[DrawnScene]:
    """What drawn images show, by the files of their data sets, each of which is read once.

    Args:
        images: files, where ``make_streetscapes`` or ``make_fashion_scenes`` put them.

    Raises:
        DataError: one is none of these data sets' images, or its set is damaged.
    """
    needs: dict[Path, Any] = {}
    return [_scene(Path(image), needs) for image in images]


def _scene(image: Path, needs: dict[Path, Any]) -> DrawnScene:
    """``needs`` has the files that were read already, by their folder."""
    found = (folder for folder in image.parents if (folder / NEEDS_FILE).is_file())
    folder = next(found, None)
    if folder is None:
        raise DataError(f"{image} is no image of drawn scenes: no folder of it has {NEEDS_FILE}")
    split = "/".join(image.relative_to(folder).parts[1:2])
    name = image.stem.removesuffix("_leftImg8bit")
    if folder.name == STREET_FOLDER:
        city = folder / "gtFine" / split / image.parent.name
        labels = city / f"{name}_gtFine_labelTrainIds.png"
    else:
        labels = folder / "labels" / split / image.name
    try:
        if folder not in needs:
            needs[folder] = json.loads((folder / NEEDS_FILE).read_text())
        return DrawnScene(labels, int(needs[folder][split][name]["objects"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / NEEDS_FILE} does not tell of {image.name}") from error


def load_subsets(root: str | os.PathLike[str]) -> dict[str, int]:
    """The subset of every image of both splits, by the image's name without ending.

    Args:
        root: the folder that was given to ``make_subsets``.

    Raises:
        DataError: the folder holds no complete data set.
    """
    folder = Path(root) / SUBSET_FOLDER
    record = read_record(folder, SUBSET_RECORD)
    if record is None or not record["complete"]:
        raise DataError(f"{folder} holds no complete subsets; run datasets/make_subsets.py first")
    path = folder / SUBSETS_FILE
    try:
        return {str(name): int(subset) for name, subset in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged; generate the scenes again") from error


def subset_names(split: str) -> list[str]:
    """``subsets_SPLIT``, and ``subsets_SPLIT_k`` with the images of subset k alone."""
    return [f"subsets_{split}", *(f"subsets_{split}_{k}" for k in range(MAX_SUBSETS))]


def register_subsets(root: str | os.PathLike[str]) -> None:
    """Register ``subsets_train``, ``subsets_val``, and both with ``_0`` to ``_3`` for one subset.

    Nothing but the record, if there is one, is read until they are used: it tells the number of
    classes. Names that exist already are given the new folder. The dicts hold, beside Detectron2's
    keys, "subset".

    Args:
        root: the folder that holds "subsets"; as $DETECTRON2_DATASETS names.
    """
    root = os.fspath(root)
    classes = 1 + _subset_count(root)
    for split in SPLITS:
        for only, name in enumerate(subset_names(split), start=-1):
            _register(name, root, split, only if only >= 0 else None, classes)


def _subset_count(root: str) -> int:
    """Of the data set that is there; of one that is to come, as many as there can be."""
    try:
        record = read_record(Path(root) / SUBSET_FOLDER, SUBSET_RECORD) or {}
        return int(record["settings"]["look"]["subsets"])
    except (DataError, KeyError, TypeError, ValueError):
        return MAX_SUBSETS


def _register(name: str, root: str, split: str, only: int | None, classes: int) -> None:
    images, labels = (os.path.join(root, SUBSET_FOLDER, top, split) for top in ("images", "labels"))

    def load() -> list[dict]:
        subsets = load_subsets(root)
        dicts = load_sem_seg(labels, images, gt_ext="png", image_ext="png")
        for item in dicts:
            stem = os.path.splitext(os.path.basename(item["file_name"]))[0]
            item["subset"] = subsets[stem]
        return [item for item in dicts if only is None or item["subset"] == only]

    register_anew(
        name,
        load,
        stuff_classes=list(SUBSET_CLASSES[:classes]),
        stuff_colors=[list(colour) for colour in _COLOURS[:classes]],
        image_root=images,
        sem_seg_root=labels,
        evaluator_type="sem_seg",
        ignore_label=255,
    )
