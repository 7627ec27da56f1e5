"""Annotation files in COCO's format: what is wrong with one, and its super-categories."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from numbers import Real
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..errors import DataError

logger = logging.getLogger(__name__)

_NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}
_CONTENT_ERRORS = (AssertionError, IndexError, KeyError, OSError, TypeError, ValueError)
_TOLD = 5  # problems of one file; a fault of a converter is in every line


class Findings(NamedTuple):
    """What is wrong with a file, and what may be meant as it is."""

    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()


@contextmanager
def reading(names: Sequence[str]) -> Iterator[None]:
    """Say clearly what the loading functions of these data sets trip over inside the block.

    Raises:
        DataError: names the data set, its annotation file and what is wrong with it.
    """
    try:
        yield
    except _CONTENT_ERRORS as error:
        raise DataError(_why(names, error)) from error


def file_problems(name: str, keys: Collection[str] = ()) -> list[str]:
    """What is wrong with the annotation file of a data set; warns of what may be meant so.

    Args:
        name: of the data set; of one without a file in COCO's format nothing is known.
        keys: what every annotation must have beside what Detectron2 needs.

    Returns:
        Sentences that name data set and file.
    """
    if not _is_coco(name):
        return []
    file = MetadataCatalog.get(name).json_file
    try:
        state = os.stat(PathManager.get_local_path(file))
        findings = _findings(file, frozenset(keys), state.st_mtime_ns, state.st_size)
    except OSError as error:
        findings = Findings((f"the file cannot be read ({error})",))
    for remark in findings.remarks:
        warn_once(f"{source([name])}: {remark}")
    if not findings.problems:
        return []
    colon = " cannot be evaluated on:" if keys and not file_problems(name) else ":"
    return [f"{source([name])}{colon} {problem}" for problem in findings.problems]


def check_file(name: str) -> None:
    """See that a data set's annotation file can be loaded.

    Raises:
        DataError: it is not as COCO's format has it; the message names data set and file.
    """
    problems = file_problems(name)
    if problems:
        raise DataError(*problems)


def evaluation_problems(cfg: CfgNode, name: str) -> list[str]:
    """What COCO's evaluation, after all images were predicted, would trip over in a file.

    Args:
        cfg: the whole configuration, which tells what is evaluated.
        name: of the data set.
    """
    keys = ["area", "iscrowd"]
    if cfg.MODEL.MASK_ON:
        keys.append("segmentation")
    if cfg.MODEL.KEYPOINT_ON:
        keys += ["keypoints", "num_keypoints"]
    return file_problems(name, keys)


@lru_cache(maxsize=1024)
def warn_once(sentence: str) -> None:
    """Warn of what checks, loaders and evaluators all see, the first time that one does."""
    logger.warning("%s", sentence)


def source(names: Sequence[str]) -> str:
    """Data sets and their annotation files, as messages name them."""
    named = []
    for name in names:
        file = MetadataCatalog.get(name).get("json_file", None)
        named.append(f"{name!r} ({file})" if file else repr(name))
    return f"data set{'s' if len(named) > 1 else ''} {', '.join(named)}"


def owners(names: Sequence[str], record: dict) -> Sequence[str]:
    """Those of the data sets that a dict can be from: after loading nothing tells any more."""
    if len(names) == 1:
        return names
    file = record.get("file_name")
    found = [n for n in names if any(d.get("file_name") == file for d in DatasetCatalog.get(n))]
    return found or names


# Data sets are asked for by checks, loaders and evaluators; a large file takes seconds to read.
_KNOWN: dict[tuple[str, int, int], dict[frozenset[str], Findings]] = {}


def _findings(json_file: str, keys: frozenset[str], changed: int, size: int) -> Findings:
    known = _KNOWN.setdefault((json_file, changed, size), {})
    for asked, found in known.items():
        # What holds all keys of more holds those of fewer.
        if asked == keys or (asked > keys and not found.problems):
            return found
    known[keys] = _examined(json_file, keys)
    return known[keys]


def _examined(json_file: str, keys: frozenset[str]) -> Findings:
    try:
        with PathManager.open(json_file, "r") as file:
            content = json.load(file)
    except ValueError as error:
        return Findings((f"the file is not valid JSON ({error})",))
    except RecursionError:
        return Findings(("the file is not valid JSON (it is nested too deeply)",))
    shape = _shape_problem(content, keys)
    if shape:
        return Findings((shape,))
    problems = tuple(islice(_content_problems(content, keys), _TOLD))
    return Findings(problems, () if problems else tuple(_remarks(content)))


def _shape_problem(content: Any, keys: Collection[str]) -> str | None:
    """The first place where the file is not built as COCO's are."""
    if not isinstance(content, dict):
        return "the file holds no JSON object with 'images', 'annotations' and 'categories'"
    content.setdefault("annotations", [])
    for part, needed in _NEEDED.items():
        entries = content.get(part)
        if not isinstance(entries, list):
            return f"the file has no list of {part!r}"
        wanted = (*needed, *sorted(keys)) if part == "annotations" else needed
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                return f"entry {index} of {part!r} is no JSON object"
            for key in wanted:
                if key not in entry:
                    return f"{_name(content, part, entry, index)} lacks {key!r}"
    return "the list of 'categories' is empty" if not content["categories"] else None


def _content_problems(content: dict, keys: Collection[str]) -> Iterator[str]:
    for part in ("images", "categories"):
        kinds, seen = set(), set()
        for index, entry in enumerate(content[part]):
            number, place = entry["id"], _name(content, part, entry, index)
            if not _is_id(number):
                yield f"{place} has id {number!r}, which is neither a whole number nor a text"
                return
            kinds.add(type(number))
            if number in seen:
                yield f"{place} has id {number!r}, which another one has too"
            seen.add(number)
        if len(kinds) > 1:
            of = "image_id" if part == "images" else "category_id"
            yield f"some ids of {part!r} are numbers and others texts, as which no {of} finds them"
            return
    for index, image in enumerate(content["images"]):
        problem = _image_problem(image)
        if problem:
            yield f"{_name(content, 'images', image, index)} has {problem}"
    for index, category in enumerate(content["categories"]):
        if not isinstance(category["name"], str):
            place = _name(content, "categories", category, index)
            yield f"{place} has name {category['name']!r}, which must be a text"
    yield from _annotation_problems(content, keys)


def _annotation_problems(content: dict, keys: Collection[str]) -> Iterator[str]:
    categories = {category["id"] for category in content["categories"]}
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    kind = type(next(iter(sizes))) if sizes else None
    matched = not (sizes and content["annotations"])
    for index, entry in enumerate(content["annotations"]):
        image = entry["image_id"]
        problem: str | None
        if not _is_id(entry["id"]):
            problem = f"id {entry['id']!r}, which is neither a whole number nor a text"
        elif not _is_id(image):
            problem = f"image_id {image!r}, which is neither a whole number nor a text"
        elif kind is not None and type(image) is not kind:
            others = "texts" if kind is str else "numbers"
            problem = f"image_id {image!r}, where the ids of images are {others}"
        else:
            problem = _annotation_problem(entry, categories, sizes.get(image), keys)
            matched |= image in sizes
        if problem:
            matched = True
            yield f"{_name(content, 'annotations', entry, index)} has {problem}"
    if not matched:
        yield "no annotation's image_id is the id of an image"


def _remarks(content: dict) -> Iterator[str]:
    images = {image["id"] for image in content["images"]}
    entries = content["annotations"]
    lost = sum(entry["image_id"] not in images for entry in entries)
    if lost:
        yield f"{lost} of {len(entries)} annotations are of no image of the file, and left out"
    names = [category["name"] for category in content["categories"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{names.count(name)} categories have the name {name!r}, and are kept apart"


def _image_problem(image: dict) -> str | None:
    if not isinstance(image["file_name"], str) or not image["file_name"]:
        return f"file_name {image['file_name']!r}, which must be a text"
    for key in ("height", "width"):
        value = image[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return f"{key} {value!r}, which must be a number of pixels"
    return None


def _annotation_problem(
    entry: dict, categories: set, size: list[int] | None, keys: Collection[str]
) -> str | None:
    category, box, crowd = entry["category_id"], entry["bbox"], entry.get("iscrowd", 0)
    if not _is_id(category) or category not in categories:
        return f"category {category}, which the file's 'categories' do not list"
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f"bbox {box}, which must be four numbers"
    if not isinstance(crowd, int) or crowd not in (0, 1):
        return f"iscrowd {crowd!r}, which must be 0 or 1"
    if "area" in keys and not (_is_number(entry["area"]) and entry["area"] >= 0):
        return f"area {entry['area']!r}, which must be a number of pixels"
    problem = _mask_problem(entry["segmentation"], size) if "segmentation" in keys else None
    if problem is None and "keypoints" in keys:
        points, count = entry["keypoints"], entry["num_keypoints"]
        if not (isinstance(points, list) and len(points) % 3 == 0 and all(map(_is_number, points))):
            return f"keypoints {points}, which must be three numbers for each"
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            return f"num_keypoints {count!r}, which must be a whole number"
    return problem


def _mask_problem(mask: Any, size: list[int] | None) -> str | None:
    if isinstance(mask, dict):
        return _rle_problem(mask.get("size"), mask.get("counts"), size)
    if not isinstance(mask, list) or not mask:
        return f"segmentation {mask}, which is no mask"
    for polygon in mask:
        fine = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not fine or not all(map(_is_number, polygon)):
            return f"a polygon {polygon}, which is no mask: it needs three points"
    return None


def _rle_problem(own: Any, counts: Any, size: list[int] | None) -> str | None:
    if not (isinstance(own, list) and len(own) == 2 and all(type(v) is int for v in own)):
        return f"an RLE mask of size {own}, which must be two numbers of pixels"
    if size is not None and own != size:
        return f"an RLE mask of size {own} in an image of {size}"
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            return "an RLE mask whose counts are no whole numbers"
        if sum(counts) != own[0] * own[1]:
            return f"an RLE mask whose counts sum up to {sum(counts)}, not to its {own[0]}×{own[1]}"
        return None
    if not isinstance(counts, str):
        return f"an RLE mask with counts {counts!r}"
    total = _run_total(counts)
    if total != own[0] * own[1]:
        return f"an RLE mask whose counts {counts[:20]!r} are not for its {own[0]}×{own[1]} pixels"
    return None


def _run_total(counts: str) -> int | None:
    """Pixels of a compressed RLE; None: it breaks off, or holds what is no count.

    A run is written by characters of six bits from "0": five of the number, lowest first, and one
    that more follow; the fifth bit of the last is the sign. From the fourth on, it is the
    difference to the run before the last. pycocotools decodes too few runs without a word.
    """
    runs: list[int] = []
    number = place = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << place
        place += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << place
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        number = place = 0
    return None if place else sum(runs)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _name(content: dict, part: str, entry: dict, index: int) -> str:
    """How messages name an entry of a list; of annotations, by their image."""
    if part != "annotations":
        name = entry.get("file_name") if part == "images" else entry.get("name")
        return f"entry {index} of {part!r}" + (f" ({name})" if isinstance(name, str) else "")
    wanted = entry.get("image_id")
    images = (i for i in content["images"] if isinstance(i, dict))
    image = next((i.get("file_name") for i in images if i.get("id") == wanted), None)
    of = f"image {image}" if image else f"image_id {wanted}, which is not among the images,"
    return f"annotation {entry.get('id', f'at position {index}')} of {of}"


def _is_coco(name: str) -> bool:
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type", None)
    return kind in ("coco", "coco_panoptic_seg") and bool(metadata.get("json_file", None))


def _why(names: Sequence[str], error: Exception) -> str:
    for name in names:
        try:
            DatasetCatalog.get(name)
        except _CONTENT_ERRORS as own:
            problems = file_problems(name)
            return problems[0] if problems else f"{source([name])}: {_words(own)}"
    return f"{source(names)}: {_words(error)}"


def _words(error: Exception) -> str:
    text = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
    if isinstance(error, KeyError) and " " not in text:
        return f"{text!r} is missing"
    if text.startswith("No valid data found"):  # Detectron2's word for having filtered all
        return (
            "no image has an annotation to train on; DATALOADER.FILTER_EMPTY_ANNOTATIONS False "
            "keeps images without"
        )
    return text or type(error).__name__


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
