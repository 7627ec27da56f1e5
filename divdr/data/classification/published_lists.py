"""Data sets of image files whose published lists say which image is of which class and split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError


class Listed(NamedTuple):
    """Images of a split.

    Attributes:
        files: of the images.
        labels: their classes, from 0.
    """

    files: list[Path]
    labels: list[int]


def read_food101(folder: Path, split: str) -> Listed:
    """``meta/{train,test}.txt`` of Food-101: a line is CLASS/NUMBER; classes are sorted.

    Args:
        folder: "food-101", unpacked.
        split: "train" or "test".

    Raises:
        DataError: a list is missing, or names a class that is none.
    """
    path = folder / "meta" / f"{split}.txt"
    classes = {name: number for number, name in enumerate(food101_classes(folder))}
    found = Listed([], [])
    for line in _lines(path):
        name = line.partition("/")[0]
        if name not in classes:
            raise DataError(f"{path} names {line!r}, whose class is not in meta/classes.txt")
        found.files.append(folder / "images" / f"{line}.jpg")
        found.labels.append(classes[name])
    return found


def food101_classes(folder: Path) -> list[str]:
    """The names in ``meta/classes.txt``, sorted.

    Raises:
        DataError: the file is missing.
    """
    return sorted(_lines(folder / "meta" / "classes.txt"))


def read_cub200(folder: Path, split: str) -> Listed:
    """``images.txt``, ``image_class_labels.txt`` and ``train_test_split.txt`` of CUB-200-2011.

    Args:
        folder: "CUB_200_2011", unpacked.
        split: "train" or "test".

    Raises:
        DataError: a list is missing, or lacks an image.
    """
    names = _numbered(folder / "images.txt")
    labels = _numbered(folder / "image_class_labels.txt")
    training = _numbered(folder / "train_test_split.txt")
    found = Listed([], [])
    for number, name in names.items():
        if number not in labels or number not in training:
            raise DataError(f"{folder}: image {number} of images.txt is not in the other lists")
        if (training[number] == "1") == (split == "train"):
            found.files.append(folder / "images" / name)
            found.labels.append(int(labels[number]) - 1)
    return found


def read_tiny_imagenet(folder: Path, split: str) -> Listed:
    """Tiny ImageNet: the folders of ``train``, and ``val/val_annotations.txt`` for "test".

    The published test images have no labels; as in the papers, those of "val" are tested on.

    Args:
        folder: "tiny-imagenet-200", unpacked.
        split: "train" or "test".

    Raises:
        DataError: a list is missing, or names a class that is none.
    """
    classes = {name: number for number, name in enumerate(_lines(folder / "wnids.txt"))}
    found = Listed([], [])
    if split == "train":
        for name, number in classes.items():
            files = sorted((folder / "train" / name / "images").glob("*.JPEG"))
            found.files.extend(files)
            found.labels.extend([number] * len(files))
        return found
    path = folder / "val" / "val_annotations.txt"
    for line in _lines(path):
        file, name = [*line.split("\t"), ""][:2]
        if name not in classes:
            raise DataError(f"{path} names {line!r}, whose class is not in wnids.txt")
        found.files.append(folder / "val" / "images" / file)
        found.labels.append(classes[name])
    return found


def records_of(name: str, found: Listed) -> list[dict]:
    """Dataset dicts of the images.

    Args:
        name: of the data set, which the images' keys begin with.
        found: files and labels.
    """
    return [
        {"file_name": str(file), "image_id": f"{name}/{file.parent.name}/{file.stem}", "label": y}
        for file, y in zip(*found, strict=True)
    ]


def _numbered(path: Path) -> dict[str, str]:
    pairs = [line.split(maxsplit=1) for line in _lines(path)]
    wrong = [pair for pair in pairs if len(pair) != 2]
    if wrong:
        raise DataError(f"{path} must hold a number and a value in every line, not {wrong[0]}")
    return dict(tuple(pair) for pair in pairs)  # type: ignore[misc]


def _lines(path: Path) -> Iterable[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
