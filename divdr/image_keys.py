"""What an image is known by, wherever its data set lies.

The activation bank remembers images over runs, machines and data folders, so a path is no name for
one. ``divdr.data`` writes a key into every dict that it loads, ``DATASET/#ID/PATH``: the data set's
name, the image's id where it has one, and the file's path below the data set's root.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.data import MetadataCatalog

from .errors import DataError

IMAGE_KEY = "image_key"
"""Entry of a dataset dict, and of a model's input dict."""

_ROOTS = ("image_root", "image_dir")


def name_images(name: str, dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of a data set's dicts with their keys, no two of which are equal.

    Args:
        name: of the data set.
        dicts: of all its images. Of several with one id and file the second gets ``+1`` after its
            id, and so on.
    """
    files = [str(d.get("file_name") or "") for d in dicts]
    places = _below(_root(name), files)
    again: dict[str, int] = defaultdict(int)
    taken: set[str] = set()
    named = []
    for item, place in zip(dicts, places, strict=True):
        mark = _mark(item)
        key = first = _joined(name, mark, place)
        while key in taken:
            again[first] += 1
            key = _joined(name, f"{mark or '#'}+{again[first]}", place)
        taken.add(key)
        named.append({**item, IMAGE_KEY: key})
    return named


def image_keys(inputs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys of a batch's images.

    For dicts that ``divdr.data`` did not load, which name no data set: the id, and the path below
    ``$DETECTRON2_DATASETS``, or below the root of a registered data set, or else as it is.

    Raises:
        DataError: an image has neither key, file name nor id.
    """
    return [str(item[IMAGE_KEY]) if IMAGE_KEY in item else _key_of(item) for item in inputs]


def former_key(item: dict[str, Any]) -> str:
    """The key of an image in checkpoints of before: its path as it was given, else its id."""
    return str(item.get("file_name", item.get("image_id")))


def recognise(former: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """Which images the keys of a checkpoint of before mean.

    Args:
        former: paths of image files, under whatever folder, or ids.
        keys: of all images there are, as :func:`name_images` makes them.

    Returns:
        Those that mean exactly one image, with its key.
    """
    by_place: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        parts = key.split("/")[1:]
        marked = bool(parts) and parts[0].startswith("#")
        if marked and len(parts) == 1:
            by_place[parts[0][1:]].append(key)
        else:
            by_place["/".join(parts[1:] if marked else parts)].append(key)
    known = {}
    for old in former:
        parts = old.replace(os.sep, "/").split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        found = next((by_place[tail] for tail in tails if tail in by_place), [])
        if len(found) == 1:
            known[old] = found[0]
    return known


def _joined(name: str, mark: str, place: str) -> str:
    return "/".join(part for part in (name.replace("/", "_"), mark, place) if part)


def _mark(item: dict[str, Any]) -> str:
    number = item.get("image_id")
    return "" if number is None else "#" + str(number).replace("/", "_")


def _key_of(item: dict[str, Any]) -> str:
    file, mark = item.get("file_name"), _mark(item)
    if not file and not mark:
        raise DataError(
            "gate clustering keeps one activation per training image and needs "
            "'file_name' or 'image_id' in every input dict"
        )
    if not file:
        return mark
    place = _registered_place(str(file))
    return f"{mark}/{place.lstrip('/')}" if mark else place


def _registered_place(file: str) -> str:
    datasets = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    place = _inside(datasets, file)
    if place is not None:
        return place
    # Of several roots the innermost, and of data sets that share it the first by name.
    found = [
        (-len(root), name, inner)
        for name in MetadataCatalog.list()
        if (root := _root(name)) and (inner := _inside(root, file)) is not None
    ]
    if not found:
        return file
    _, name, inner = min(found)
    return f"{name}/{inner}"


def _root(name: str) -> str:
    # A data set that is used alone is not asked for metadata, which would be made for it.
    if name not in MetadataCatalog.list():
        return ""
    metadata = MetadataCatalog.get(name).as_dict()
    return next((str(metadata[key]) for key in _ROOTS if metadata.get(key)), "")


def _below(root: str, files: Sequence[str]) -> list[str]:
    """Paths below the root, or, where one lies elsewhere, below the folder that all share."""
    found = [_inside(root, file) if root and file else "" for file in files]
    if root and None not in found:
        return [place or "" for place in found]
    whole = [os.path.abspath(file) for file in files if file]
    shared = os.path.commonpath([os.path.dirname(file) for file in whole]) if whole else ""
    return [os.path.relpath(file, shared).replace(os.sep, "/") if file else "" for file in files]


def _inside(folder: str, file: str) -> str | None:
    """The file's path below a folder; None if it lies elsewhere."""
    start = os.path.join(folder, "")
    if file.startswith(start) and "/../" not in file:
        inner = file[len(start) :]
    else:
        start = os.path.join(os.path.abspath(folder), "")
        whole = os.path.abspath(file)
        if not whole.startswith(start):
            return None
        inner = whole[len(start) :]
    return os.path.normpath(inner.lstrip(os.sep)).replace(os.sep, "/")
