"""Which image gets which id and size, and which files belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from divdr.errors import ConfigError

from ..files import SPLITS

#: Image ids lie below this. Segment ids are made from them and must fit into three bytes.
ID_LIMIT = 160_000
SEGMENTS_PER_IMAGE = 100

#: One in this many images shows no objects at all.
EMPTY_EVERY = 20

#: Width and height in units of ``size``: landscape, portrait, square.
_SHAPES = ((1.0, 0.75), (0.75, 1.0), (1.0, 1.0), (1.0, 0.75))


@dataclass(frozen=True)
class Job:
    """One image to be made.

    Attributes:
        split: "train" or "val".
        image_id: COCO's number of the image, at least 1; no two images share one.
        height, width: in pixels.
        empty: whether there are no objects in it.
    """

    split: str
    image_id: int
    height: int
    width: int
    empty: bool

    @property
    def name(self) -> str:
        """Name of its files without their endings: the id in 12 digits."""
        return f"{self.image_id:012d}"


def plan(counts: dict[str, int], size: int, seed: int) -> dict[str, list[Job]]:
    """All images of each split, ordered by id.

    Raises:
        ConfigError: there are more images than ids.
    """
    total = sum(counts.values())
    if total >= ID_LIMIT:
        raise ConfigError(f"there can be at most {ID_LIMIT - 1} images, not {total}.")
    rng = np.random.default_rng([seed, len(SPLITS)])
    ids = 1 + rng.choice(ID_LIMIT - 1, total, replace=False)
    jobs: dict[str, list[Job]] = {}
    for split in SPLITS:
        own, ids = np.sort(ids[: counts[split]]), ids[counts[split] :]
        jobs[split] = []
        for index, image_id in enumerate(own):
            wide, high = _SHAPES[int(rng.integers(len(_SHAPES)))]
            empty = index % EMPTY_EVERY == EMPTY_EVERY // 2
            job = Job(split, int(image_id), round(size * high), round(size * wide), empty)
            jobs[split].append(job)
    return jobs


def image_file(split: str, name: str) -> Path:
    """Path of a photograph below the "coco" folder."""
    return Path(f"{split}2017", f"{name}.jpg")


def panoptic_file(split: str, name: str) -> Path:
    """Path of a picture of segment ids below the "coco" folder."""
    return Path(f"panoptic_{split}2017", f"{name}.png")


def stuff_file(split: str, name: str) -> Path:
    """Path of a picture of stuff classes below the "coco" folder."""
    return Path(f"panoptic_stuff_{split}2017", f"{name}.png")


def image_files(split: str, name: str) -> list[Path]:
    """All files of one image below the "coco" folder."""
    return [f(split, name) for f in (panoptic_file, stuff_file, image_file)]


def annotation_file(kind: str, split: str) -> Path:
    """Path of the "instances", "person_keypoints" or "panoptic" file of a split."""
    return Path("annotations", f"{kind}_{split}2017.json")


ANNOTATION_KINDS = ("instances", "person_keypoints", "panoptic")

#: Folders that hold files of COCO and nothing else.
FOLDERS = (
    Path("annotations"),
    *(f(split, "x").parent for split in SPLITS for f in (image_file, panoptic_file, stuff_file)),
)
