"""Writing whole data sets in the layout of COCO, in parallel and safe against interruption."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import (
    PARTIAL,
    SPLITS,
    DrawnSet,
    available_cores,
    check_counts,
    run_jobs,
    write_atomically,
)
from . import categories
from .annotate import Annotations, annotate
from .draw import check_size, draw_scene
from .naming import (
    ANNOTATION_KINDS,
    FOLDERS,
    Job,
    annotation_file,
    image_file,
    image_files,
    panoptic_file,
    plan,
    stuff_file,
)

#: Raised whenever the same settings would give different files.
VERSION = 2

RECORD = "shapes_coco.json"

_HEAD = {
    "info": {"description": "Drawn scenes in the format of COCO 2017", "version": str(VERSION)},
    "licenses": [{"id": 1, "name": "Apache License 2.0", "url": ""}],
}


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _make_image(job: Job, folder: Path, seed: int) -> Annotations:
    # Seeded by the image alone, so the number of workers and their order do not matter.
    rng = np.random.default_rng([seed, job.image_id])
    scene = draw_scene(job.height, job.width, rng, empty=job.empty)
    annotations, ids, stuff = annotate(job, scene)
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2).astype(np.uint8)
    contents = {
        panoptic_file: _encode(Image.fromarray(colours), "PNG"),
        stuff_file: _encode(Image.fromarray(stuff), "PNG"),
        image_file: _encode(Image.fromarray(scene.picture), "JPEG", quality=92, subsampling=0),
    }
    for path, content in contents.items():
        write_atomically(folder / path(job.split, job.name), content, folder / PARTIAL)
    return annotations


def _summaries(split: str, made: list[Annotations]) -> dict[Path, Any]:
    """Contents of the three annotation files of a split."""
    images = [one.image for one in made]
    instances = [instance for one in made for instance in one.instances]
    joints = ("keypoints", "num_keypoints")
    plain = [{k: v for k, v in one.items() if k not in joints} for one in instances]
    lists = {
        "instances": (plain, categories.instance_categories()),
        "person_keypoints": (
            [one for one in instances if "keypoints" in one],
            categories.keypoint_categories(),
        ),
        "panoptic": ([one.panoptic for one in made], categories.panoptic_categories()),
    }
    return {
        annotation_file(kind, split): {
            **_HEAD,
            "images": images,
            "annotations": annotations,
            "categories": listed,
        }
        for kind, (annotations, listed) in lists.items()
    }


def make_shapes_coco(
    root: str | os.PathLike[str],
    *,
    train: int = 60,
    val: int = 20,
    size: int = 160,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Generates drawn scenes in the layout of COCO 2017 under ``root``/coco.

    The same settings give the same bytes, however many workers there are. A run that finds its
    own complete result does nothing; if something is missing, after an interrupted run, or for
    other settings, everything that this generator made in the folder is made anew. Files from
    elsewhere are never touched.

    Args:
        root: folder to create "coco" in; what $DETECTRON2_DATASETS should name.
        train, val: number of images per split.
        size: longer side of the images in pixels, at least 86; the shorter one is three quarters
            of it, or the same.
        seed: chooses the scenes; not negative.
        workers: number of processes; None for one per core.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the folder holds images or annotations that this generator did not make.
    """
    workers = available_cores() if workers is None else workers
    check_counts(train=train, val=val, workers=workers, seed=seed)
    check_size(size)
    settings = {"train": train, "val": val, "size": size, "seed": seed}
    plans = plan({"train": train, "val": val}, size, seed)
    names = {split: [job.name for job in plans[split]] for split in SPLITS}
    data = DrawnSet(
        folder=Path(root) / "coco",
        record_name=RECORD,
        version=VERSION,
        image_files=image_files,
        own_folders=FOLDERS,
        summaries=tuple(annotation_file(k, split) for k in ANNOTATION_KINDS for split in SPLITS),
    )
    if not data.prepare(settings, names):
        return
    # Annotations of all images share files, so a single missing image has all of them made anew.
    jobs = [job for split in SPLITS for job in plans[split]]
    make = functools.partial(_make_image, folder=data.folder, seed=seed)
    made = run_jobs(jobs, make, workers, "drawn scenes")
    for split, own in (("train", made[:train]), ("val", made[train:])):
        for path, content in _summaries(split, own).items():
            data.write_json(path, content, indent=None)
    data.finish(settings, names)
