"""COCO's categories and keypoints, in the form in which its annotation files list them."""

from __future__ import annotations

from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, COCO_PERSON_KEYPOINT_NAMES

#: Category id of every class, things and stuff.
CATEGORY_IDS: dict[str, int] = {c["name"]: c["id"] for c in COCO_CATEGORIES}

#: Ids of the 80 classes of things.
THING_IDS = frozenset(c["id"] for c in COCO_CATEGORIES if c["isthing"])

#: What the panoptic_stuff pictures hold for each of the 53 stuff ids, and for the rest.
STUFF_LABELS: dict[int, int] = {
    number: label
    for label, number in enumerate((c["id"] for c in COCO_CATEGORIES if not c["isthing"]), start=1)
}
THINGS_LABEL = 0
IGNORED_LABEL = 255

KEYPOINT_NAMES: tuple[str, ...] = tuple(COCO_PERSON_KEYPOINT_NAMES)

#: Pairs of keypoint names that a skeleton joins.
_BONES = (
    "left_ankle left_knee, left_knee left_hip, right_ankle right_knee, right_knee right_hip, "
    "left_hip right_hip, left_shoulder left_hip, right_shoulder right_hip, "
    "left_shoulder right_shoulder, left_shoulder left_elbow, right_shoulder right_elbow, "
    "left_elbow left_wrist, right_elbow right_wrist, left_eye right_eye, nose left_eye, "
    "nose right_eye, left_eye left_ear, right_eye right_ear, left_ear left_shoulder, "
    "right_ear right_shoulder"
)


def instance_categories() -> list[dict[str, Any]]:
    """The 80 entries of instances_*.json."""
    return [_entry(c) for c in COCO_CATEGORIES if c["isthing"]]


def keypoint_categories() -> list[dict[str, Any]]:
    """The single entry of person_keypoints_*.json; the skeleton counts from 1."""
    skeleton = [
        [KEYPOINT_NAMES.index(name) + 1 for name in bone.split()] for bone in _BONES.split(", ")
    ]
    person = next(c for c in COCO_CATEGORIES if c["name"] == "person")
    return [{**_entry(person), "keypoints": list(KEYPOINT_NAMES), "skeleton": skeleton}]


def panoptic_categories() -> list[dict[str, Any]]:
    """The 133 entries of panoptic_*.json."""
    return [
        {**_entry(c), "isthing": c["isthing"], "color": list(c["color"])} for c in COCO_CATEGORIES
    ]


def _entry(category: dict[str, Any]) -> dict[str, Any]:
    group = _supercategory(category["id"]) if category["isthing"] else "stuff"
    return {"supercategory": group, "id": category["id"], "name": category["name"]}


#: COCO's super-categories of things, each with the largest id of its classes.
_SUPERCATEGORIES = {
    1: "person",
    9: "vehicle",
    15: "outdoor",
    25: "animal",
    33: "accessory",
    43: "sports",
    51: "kitchen",
    61: "food",
    71: "furniture",
    77: "electronic",
    83: "appliance",
    90: "indoor",
}


def _supercategory(number: int) -> str:
    return next(name for last, name in _SUPERCATEGORIES.items() if number <= last)
