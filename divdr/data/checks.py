"""What can be seen in a data set's dicts before a run starts, and would stop it in its middle."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import DataError
from .classes import predicted_things
from .coco_json import owners, source, warn_once

_EMPTY = 1e-5  # pixels; Detectron2 leaves out boxes that are no wider or higher


class _Wanted(NamedTuple):
    """What data set and model ask of an annotation."""

    things: tuple[str, ...]  # names of the data set's classes; empty: unknown
    key: str = ""  # the setting of how many the model predicts; "": unknown
    classes: int = 0  # its value
    mask_format: str = ""  # "": the model learns no masks
    keypoints: int = 0  # 0: the model learns none


# Lists of annotations without a problem, by what was asked of them and their id, which no other one
# gets as long as they are held here.
_Sound = dict[_Wanted, dict[int, Any]]
_SOUND: ContextVar[_Sound | None] = ContextVar("sound annotations", default=None)


@contextmanager
def checking_once() -> Iterator[None]:
    """Inside the block, lists of annotations that suit a model are not looked at again for it."""
    token = _SOUND.set({}) if _SOUND.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _SOUND.reset(token)


def annotation_problems(
    cfg: CfgNode, names: Sequence[str], dicts: Sequence[dict], *, training: bool = True
) -> Iterator[str]:
    """What Detectron2's mapper and the model cannot learn from, or evaluation not work with.

    Boxes without area are legal: Detectron2 leaves them out; a warning tells how many there are.

    Args:
        cfg: the whole configuration. What an architecture asks for that is not Detectron2's own
            is not known, and not checked.
        names: data sets that the dicts are from.
        dicts: of their images.
        training: whether the model learns from them; else masks may be of either format.

    Yields:
        Sentences about a box, category, segmentation or list of key points that is not as it must
        be; they name data set, annotation file and image.
    """
    wanted = _wanted(cfg, names)
    if not training:
        wanted = wanted._replace(mask_format="")
    empty, first = 0, None
    everything = _SOUND.get()
    before = everything.get(wanted, {}) if everything is not None else {}
    sound = {}
    for record in dicts:
        annotations = record.get("annotations", ())
        if id(annotations) in before:
            continue
        sound[id(annotations)] = annotations
        for annotation in annotations:
            if annotation.get("iscrowd", 0):  # Detectron2 never trains on crowds
                continue
            problem = _problem(record, annotation, wanted)
            if problem:
                sound.pop(id(annotations), None)
                yield (
                    f"{source(owners(names, record))}: an annotation of image "
                    f"{record.get('file_name')} {problem}"
                )
            elif _is_empty(record, annotation):
                empty += 1
                first = first or record.get("file_name")
    if everything is not None:
        everything.setdefault(wanted, {}).update(sound)
    # With crops Detectron2 makes boxes anew from the masks, whatever the annotation says.
    if training and empty and not (wanted.mask_format and cfg.INPUT.CROP.ENABLED):
        warn_once(
            f"{source(names)}: {empty} boxes have no area inside their image and are left out in "
            f"training, the first in image {first}"
        )


def check_annotations(cfg: CfgNode, names: Sequence[str], dicts: Sequence[dict]) -> None:
    """See that there are no :func:`annotation_problems`.

    Raises:
        DataError: of the first one.
    """
    for problem in annotation_problems(cfg, names, dicts):
        raise DataError(problem)


def check_images(names: Sequence[str], dicts: Sequence[dict]) -> None:
    """See that the files of all images, and of their semantic labels, are there.

    Folders are listed once each: asking for each file takes minutes on a network's file system.

    Raises:
        DataError: names the first file that is missing, and tells how many others are; or an
            image whose width or height is no number.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for record in dicts:
        for key in ("file_name", "sem_seg_file_name"):
            path = str(record.get(key) or "")
            if path and "://" not in path:
                folder, name = os.path.split(path)
                wanted[folder].append(name)
        if not all(isinstance(record.get(key, 1), Real) for key in ("width", "height")):
            raise DataError(
                f"{source(owners(names, record))}: image {record.get('file_name')} has width "
                f"{record.get('width')!r} and height {record.get('height')!r}"
            )
    missing: dict[str, None] = {}
    for folder, files in wanted.items():
        try:
            with os.scandir(folder or ".") as entries:
                present = {entry.name for entry in entries}
        except OSError:
            present = set()
        absent = (os.path.join(folder, name) for name in files if name not in present)
        # Some file systems list a name in other letters than they find it by.
        missing.update((path, None) for path in absent if not os.path.exists(path))
    if missing:
        first, others = next(iter(missing)), len(missing) - 1
        raise DataError(
            f"{source(names)}: file {first} does not exist"
            + (f", nor do {others} others" if others else "")
        )


def _wanted(cfg: CfgNode, names: Sequence[str]) -> _Wanted:
    wanted = _Wanted(tuple(MetadataCatalog.get(names[0]).get("thing_classes", ())))
    key, classes = predicted_things(cfg)
    if not key:
        return wanted
    wanted = wanted._replace(key=key, classes=classes)
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return wanted
    return wanted._replace(
        mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else "",
        keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
    )


def _problem(record: dict, annotation: dict, wanted: _Wanted) -> str | None:
    problem = _box_problem(annotation) or _category_problem(annotation, wanted)
    if problem is None and wanted.mask_format:
        problem = _mask_problem(record, annotation, wanted.mask_format)
    if problem is None and wanted.keypoints:
        numbers = np.size(annotation.get("keypoints", ()))
        if numbers != 3 * wanted.keypoints:
            problem = (
                f"has {numbers} values for key points, and must have three for each of the "
                f"{wanted.keypoints} of MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
            )
    return problem


def _box_problem(annotation: dict) -> str | None:
    box = annotation.get("bbox")
    if box is None:
        return "has no 'bbox'"
    numbers = 5 if annotation.get("bbox_mode") == BoxMode.XYWHA_ABS else 4
    try:
        fine = len(box) == numbers and all(map(math.isfinite, box))
    except TypeError:
        fine = False
    return None if fine else f"has the bbox {box}, which must be {numbers} finite numbers"


def _category_problem(annotation: dict, wanted: _Wanted) -> str | None:
    try:
        category = int(annotation["category_id"])
    except (KeyError, TypeError, ValueError):
        return f"has the category_id {annotation.get('category_id')!r}"
    things, classes = wanted.things, wanted.classes
    if category < 0 or (things and category >= len(things)):
        return f"has category {category}, but the data set has {len(things)} of them, from 0"
    if wanted.key and category >= classes:
        name = f" ({things[category]!r})" if things else ""
        return (
            f"has category {category}{name}, counted from 0, but {wanted.key} is {classes}; set "
            f"it to {len(things) or 'the number of categories'}"
        )
    return None


def _mask_problem(record: dict, annotation: dict, mask_format: str) -> str | None:
    mask = annotation.get("segmentation")
    if mask is None or len(mask) == 0:
        return "has no segmentation; MODEL.MASK_ON wants one"
    if isinstance(mask, list):
        wrong = [len(polygon) for polygon in mask if len(polygon) % 2 or len(polygon) < 6]
        return f"has a polygon of {wrong[0]} numbers" if wrong else None
    if isinstance(mask, dict):
        if mask_format == "polygon":
            return "has an RLE mask, but INPUT.MASK_FORMAT is polygon; set it to bitmask"
        size = [record.get("height"), record.get("width")]
        if None not in size and list(mask.get("size", ())) != size:
            return f"has an RLE mask of size {mask.get('size')} in an image of {size}"
    return None


def _is_empty(record: dict, annotation: dict) -> bool:
    x, y, right, bottom = annotation["bbox"][:4]
    mode = annotation.get("bbox_mode")
    if mode == BoxMode.XYWH_ABS:
        right, bottom = x + right, y + bottom
    elif mode != BoxMode.XYXY_ABS:
        return False
    # Detectron2 takes corners in either order, and cuts at the edges of the image.
    width = min(max(x, right), record.get("width", math.inf)) - max(min(x, right), 0)
    height = min(max(y, bottom), record.get("height", math.inf)) - max(min(y, bottom), 0)
    return width <= _EMPTY or height <= _EMPTY
