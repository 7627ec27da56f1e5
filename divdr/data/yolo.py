"""YOLO's folders: a text file beside each image, with a line for each box or polygon."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.structures import BoxMode

from ..errors import ConfigError, DataError
from ..image_files import ENDINGS, image_size
from .folders import images_below

SETS = ("train", "val", "test")
"""Keys of a ``data.yaml`` that lead to images."""

_TOLD = 5  # problems of one data set
_ROUNDING = 1e-3  # writers round, and some then pass the edge


def read_plain_yaml(path: str | Path) -> Any:
    """What a yaml file holds.

    Raises:
        ConfigError: it is missing or no yaml; the sentence names the line where that is known.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} cannot be read as yaml: {error.problem}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} cannot be read as yaml: {cause}") from None


def read_yolo_yaml(path: str | Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of classes, and for each of :data:`SETS` that there is, its folders, lists or files.

    Paths are below "path", which is below the file's own folder; one that is not there, and begins
    with "../", is looked for without it, as programs that write such files mean it.

    Raises:
        ConfigError: see :func:`read_plain_yaml`.
        DataError: the file has no names, or not one for each number, or no images.
    """
    content = read_plain_yaml(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys 'names', 'train' and 'val'")
    names = _names(path, content.get("names"))
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{path}: 'nc' is {count!r}, and 'names' has {len(names)} classes")
    own = os.path.dirname(os.path.abspath(path))
    base = os.path.join(own, os.path.expanduser(str(content.get("path") or "")))
    if not os.path.isdir(base):
        base = own
    sets = {}
    for key in SETS:
        value = content.get(key)
        if value:
            listed = value if isinstance(value, list) else [value]
            sets[key] = [_found(base, str(each)) for each in listed]
    if not sets:
        raise DataError(f"{path} names no images: it has none of {', '.join(map(repr, SETS))}")
    return names, sets


def read_yolo(
    name: str, places: Sequence[str], classes: Sequence[str], labels: str = ""
) -> list[dict[str, Any]]:
    """Dicts of images with boxes; a line of six numbers or more is a polygon, and gives a mask too.

    An image's label file has the ending .txt and lies where its path has "labels" in place of the
    last "images", or beside it; an image without one shows nothing.

    Args:
        name: of the data set, for messages.
        places: folders of images, text files that list them, or image files.
        classes: names, by number.
        labels: folder of the label files, by their images' paths below a place; "": as above.

    Raises:
        DataError: there are no images, or lines of label files are not as they must be; the
            messages name file and line.
    """
    pairs = [pair for place in places for pair in _pairs(name, place, labels)]
    if not pairs:
        raise DataError(f"data set {name!r}: {', '.join(places)} holds no image")
    dicts: list[dict[str, Any]] = []
    problems: list[str] = []
    with ThreadPoolExecutor(8) as pool:
        for record, found in pool.map(partial(_record, classes=len(classes)), pairs):
            dicts.append(record)
            problems += found
    if problems:
        raise DataError(*problems[:_TOLD])
    if not any(record["annotations"] for record in dicts):
        raise DataError(
            f"data set {name!r}: none of {len(dicts)} images has a box; the label file of "
            f"{pairs[0][0]} would be {pairs[0][1]}"
        )
    # Not the folder that the images share: that may be another one when images are added.
    root = os.path.commonpath([_base(Path(place)) for place in places])
    for record in dicts:
        record["image_id"] = os.path.relpath(record["file_name"], root).replace(os.sep, "/")
    return dicts


def _names(path: str | Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{path}: 'names' must number the classes from 0, not {[*names]}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path} has no list of 'names' of classes")
    return [str(each) for each in names]


def _found(base: str, place: str) -> str:
    whole = os.path.normpath(os.path.join(base, os.path.expanduser(place)))
    if not os.path.exists(whole) and place.startswith("../"):
        other = os.path.normpath(os.path.join(base, place[3:]))
        return other if os.path.exists(other) else whole
    return whole


def _pairs(name: str, place: str, labels: str) -> list[tuple[Path, Path]]:
    path, base = Path(place), _base(Path(place))
    if path.is_dir():
        images = images_below(path)
    elif path.suffix.lower() == ".txt" and path.is_file():
        lines = (line.strip() for line in path.read_text().splitlines())
        images = [path.parent / line for line in lines if line]
    elif path.suffix.lower() in ENDINGS and path.is_file():
        images = [path]
    else:
        raise DataError(f"data set {name!r} expects its images in {place}, which does not exist")
    if labels:
        return [(i, Path(labels, os.path.relpath(i, base)).with_suffix(".txt")) for i in images]
    return [(image, _label_of(image)) for image in images]


def _base(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _label_of(image: Path) -> Path:
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _record(pair: tuple[Path, Path], classes: int) -> tuple[dict[str, Any], list[str]]:
    image, label = pair
    record: dict[str, Any] = {"file_name": str(image), "annotations": []}
    try:
        record["height"], record["width"] = rows, columns = image_size(image)[:2]
        text = label.read_text()
    except FileNotFoundError:
        return record, []
    except DataError as error:
        return record, [str(error)]
    except (OSError, UnicodeDecodeError) as error:
        return record, [f"{label} cannot be read ({error})"]
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record["annotations"].append(_annotation(line.split(), rows, columns, classes))
        except ValueError as error:
            problems.append(f"{label}, line {number}: {error}")
    return record, problems


def _annotation(words: list[str], rows: int, columns: int, classes: int) -> dict[str, Any]:
    """Raises ValueError: what is wrong with the line."""
    if not re.fullmatch(r"\d+(\.0*)?", words[0]):
        raise ValueError(f"the class {words[0]!r} is no whole number from 0")
    category = int(float(words[0]))
    if category >= classes:
        raise ValueError(f"class {category}, but classes are 0 to {classes - 1}")
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        wrong = next(word for word in words[1:] if not _is_number(word))
        raise ValueError(f"{wrong!r} is no number") from None
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(
            f"{len(numbers)} numbers follow the class; a box has 4 (centre, width and height), a "
            "polygon two for each of at least 3 points"
        )
    outside = [n for n in numbers if not -_ROUNDING <= n <= 1 + _ROUNDING]
    if outside:
        raise ValueError(f"{outside[0]:g} is not between 0 and 1, a share of the image's size")
    found: dict[str, Any] = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": category}
    if len(numbers) == 4:
        x, y, width, height = numbers
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    else:
        xs, ys = numbers[::2], numbers[1::2]
        corners = [min(xs), min(ys), max(xs), max(ys)]
        found["segmentation"] = [
            [
                min(max(value, 0.0), 1.0) * (rows if place % 2 else columns)
                for place, value in enumerate(numbers)
            ]
        ]
    sizes = (columns, rows, columns, rows)
    found["bbox"] = [
        min(max(corner, 0.0), 1.0) * size for corner, size in zip(corners, sizes, strict=True)
    ]
    return found


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
