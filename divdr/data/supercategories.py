"""The super-categories that a detection data set gives its classes."""

from __future__ import annotations

import json

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager


def supercategories(name: str) -> list[int] | None:
    """The super-category of every class of things, from 0 in the order of their first classes.

    They come from the metadata's ``thing_supercategories``, a name for each class, else from the
    categories of its COCO file.

    Args:
        name: a registered data set that has been loaded.

    Returns:
        One number a class; None where the data set has no super-categories.
    """
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_supercategories") or _from_file(metadata)
    if not names:
        return None
    numbers = {group: number for number, group in enumerate(dict.fromkeys(names))}
    return [numbers[group] for group in names]


def _from_file(metadata) -> list[str] | None:
    path = metadata.get("json_file")
    places = metadata.get("thing_dataset_id_to_contiguous_id")
    if not path or not places:
        return None
    with PathManager.open(path, "r") as file:
        categories = {c["id"]: c for c in json.load(file)["categories"]}
    ordered = sorted(places, key=places.get)
    names = [categories.get(number, {}).get("supercategory") for number in ordered]
    return names if all(names) else None
