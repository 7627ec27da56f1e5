"""From a drawn scene to COCO's annotations: instances, keypoints, panoptic and stuff pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import masks
from .categories import CATEGORY_IDS, IGNORED_LABEL, STUFF_LABELS, THINGS_LABEL
from .draw import Scene
from .naming import SEGMENTS_PER_IMAGE, Job, image_file, panoptic_file
from .thing import Thing

#: Nobody marks joints on people who take up fewer pixels.
LEAST_FOR_KEYPOINTS = 100


@dataclass
class Annotations:
    """What the annotation files say of one image.

    Attributes:
        image: its entry among the images.
        instances: its objects; those that are persons have keypoints too.
        panoptic: its entry in the panoptic file.
    """

    image: dict[str, Any]
    instances: list[dict[str, Any]]
    panoptic: dict[str, Any]


def annotate(job: Job, scene: Scene) -> tuple[Annotations, np.ndarray, np.ndarray]:
    """The annotations of a scene.

    Returns:
        The entries of the annotation files, the segment ids, int (H, W), 0 where nothing is
        labelled, and the stuff labels, uint8 (H, W). A thing has the same id as a segment and as
        an instance.
    """
    ids = np.zeros(scene.owner.shape, np.int64)
    stuff = np.full(scene.owner.shape, IGNORED_LABEL, np.uint8)
    number = job.image_id * SEGMENTS_PER_IMAGE
    instances, segments = [], []

    def add(mask: np.ndarray, category: int, crowd: bool, label: int) -> dict[str, Any]:
        nonlocal number
        ids[mask], stuff[mask] = number, label
        segment = {
            "id": number,
            "category_id": category,
            "iscrowd": int(crowd),
            "bbox": list(masks.bounding_box(mask)),
            "area": int(mask.sum()),
        }
        segments.append(segment)
        number += 1
        return segment

    for index, thing in enumerate(scene.things):
        if not thing.name:
            continue
        mask = scene.owner == index
        segment = add(mask, CATEGORY_IDS[thing.name], thing.crowd, THINGS_LABEL)
        form = masks.run_lengths(mask) if thing.crowd else masks.polygons(mask)
        instance = {**segment, "image_id": job.image_id, "segmentation": form}
        if thing.name == "person":
            instance |= _keypoints(thing, mask)
        instances.append(instance)
    for name in dict.fromkeys(scene.stuff.ravel()):
        mask = (scene.owner == -1) & (scene.stuff == name)
        if mask.any():
            category = CATEGORY_IDS[name]
            add(mask, category, False, STUFF_LABELS[category])

    height, width = scene.owner.shape
    image = {
        "id": job.image_id,
        "file_name": image_file(job.split, job.name).name,
        "height": height,
        "width": width,
        "license": 1,
    }
    file = panoptic_file(job.split, job.name).name
    panoptic = {"image_id": job.image_id, "file_name": file, "segments_info": segments}
    return Annotations(image, instances, panoptic), ids, stuff


def _keypoints(person: Thing, mask: np.ndarray) -> dict[str, Any]:
    """COCO's [x, y, v] of 17 keypoints in a row; whole pixels."""
    height, width = mask.shape
    flat: list[int] = []
    labelled = bool(person.keypoints) and int(mask.sum()) >= LEAST_FOR_KEYPOINTS
    for x, y, visible in person.keypoints if labelled else ():
        column, row = int(np.floor(x)), int(np.floor(y))
        if not visible or not (0 <= column < width and 0 <= row < height):
            flat += [0, 0, 0]
        else:
            # Something nearer may hide what the person's own body does not.
            flat += [column, row, visible if mask[row, column] else 1]
    flat = flat or [0] * 51
    return {"keypoints": flat, "num_keypoints": sum(v > 0 for v in flat[2::3])}
