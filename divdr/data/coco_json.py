"""What is wrong with an annotation file in COCO's format, in one sentence that names the file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

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


def check_evaluation_file(cfg: CfgNode, name: str) -> None:
    """See that COCO's evaluation can work with a data set's annotation file.

    It reads values that training does without, and would fail after all images were predicted.

    Raises:
        DataError: names the data set, the file and what is missing or wrong.
    """
    metadata = MetadataCatalog.get(name)
    if not _is_coco(name):
        return
    keys = ["area", "iscrowd"]
    if cfg.MODEL.MASK_ON:
        keys.append("segmentation")
    if cfg.MODEL.KEYPOINT_ON:
        keys += ["keypoints", "num_keypoints"]
    problem = coco_problem(metadata.json_file, keys)
    if problem:
        raise DataError(f"{source([name])} cannot be evaluated on: {problem}")
    key, classes = predicted_classes(cfg)
    known = len(metadata.get("thing_classes", ()))
    if key and 0 < known < classes:
        logger.warning(
            "%s is %d, but %s has %d categories; evaluation fails if the model predicts others",
            key,
            classes,
            source([name]),
            known,
        )


def source(names: Sequence[str]) -> str:
    """Data sets and their annotation files, as messages name them."""
    told = []
    for name in names:
        file = MetadataCatalog.get(name).get("json_file", None)
        told.append(f"{name!r} ({file})" if file else repr(name))
    return f"data set{'s' if len(told) > 1 else ''} {', '.join(told)}"


def owners(names: Sequence[str], record: dict) -> Sequence[str]:
    """Those of the data sets that a dict can be from: after loading nothing tells any more."""
    if len(names) == 1:
        return names
    file = record.get("file_name")
    found = [n for n in names if any(d.get("file_name") == file for d in DatasetCatalog.get(n))]
    return found or names


def predicted_classes(cfg: CfgNode) -> tuple[str, int]:
    """The setting of how many classes of things a model predicts, and its value.

    ("", 0) for an architecture that predicts none, or is not Detectron2's own.
    """
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN"):
        return "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return "", 0


def coco_problem(json_file: str, keys: Sequence[str] = ()) -> str | None:
    """The first thing in a file that is not as COCO's format has it; None: nothing was found.

    Args:
        json_file: path of the file.
        keys: what every annotation must have beside Detectron2's needs.
    """
    try:
        with PathManager.open(json_file, "r") as file:
            content = json.load(file)
        return _content_problem(content, keys)
    except OSError as error:
        return f"the file cannot be read ({error})"
    except ValueError as error:
        return f"the file is not valid JSON ({error})"
    except TypeError as error:
        return f"an id is neither a number nor a text ({error})"


def _content_problem(content: Any, keys: Sequence[str]) -> str | None:
    if not isinstance(content, dict):
        return "the file holds no JSON object with 'images', 'annotations' and 'categories'"
    content.setdefault("annotations", [])
    for part, needed in _NEEDED.items():
        entries = content.get(part)
        if not isinstance(entries, list):
            return f"the file has no list of {part!r}"
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                return f"entry {index} of {part!r} is no JSON object"
            wanted = (*needed, *keys) if part == "annotations" else needed
            missing = [key for key in wanted if key not in entry]
            if missing:
                return f"{_name(content, part, entry, index)} lacks {missing[0]!r}"
    if not content["categories"]:
        return "the list of 'categories' is empty"
    known = {category["id"] for category in content["categories"]}
    for index, entry in enumerate(content["annotations"]):
        problem = _annotation_problem(entry, known, "segmentation" in keys)
        if problem:
            return f"{_name(content, 'annotations', entry, index)} has {problem}"
    return None


def _annotation_problem(entry: dict, known: set, masks: bool) -> str | None:
    category, box = entry["category_id"], entry["bbox"]
    if category not in known:
        return f"category {category}, which the file's 'categories' do not list"
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, Real) for v in box)):
        return f"bbox {box}, which must be four numbers"
    if masks:
        mask = entry["segmentation"]
        if not mask or (isinstance(mask, list) and len(mask[0]) < 4):
            return f"segmentation {mask}, which is no mask"
    return None


def _name(content: dict, part: str, entry: dict, index: int) -> str:
    """How messages name an entry of a list; of annotations, by their image."""
    if part != "annotations":
        return f"entry {index} of {part!r}"
    wanted = entry.get("image_id")
    image = next((i["file_name"] for i in content["images"] if i["id"] == wanted), None)
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
            problem = coco_problem(MetadataCatalog.get(name).json_file) if _is_coco(name) else None
            return f"{source([name])}: {problem or _words(own)}"
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
