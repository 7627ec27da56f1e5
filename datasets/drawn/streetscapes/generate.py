"""Writing whole data sets of street scenes, in parallel and safe against interruption."""

from __future__ import annotations

import functools
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from divdr.data.drawn_sets import CHARACTERS_FILE, NEEDS_FILE
from divdr.errors import ConfigError

from ..files import PARTIAL, SPLITS, check_counts, run_jobs, write_atomically
from .draw import check_size, draw_scene
from .labels import label_images
from .naming import Job, annotation_file, image_file, plan_split
from .record import scenes_below

#: Ids of single objects in the pictures of instances; smaller ones are classes or groups.
FIRST_INSTANCE = 1000


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    # Level 3 is several times faster than the default and hardly larger for noisy pictures.
    image.save(content, "PNG", compress_level=3)
    return content.getvalue()


def _make_image(job: Job, folder: Path, height: int, width: int, seed: int) -> None:
    # Seeded by the image's place alone, so the number of workers and their order do not matter.
    rng = np.random.default_rng([seed, SPLITS.index(job.split), job.index])
    picture, annotation = draw_scene(job.character, height, width, rng, job.density)
    contents = {
        annotation_file(job.split, job.name, f"{kind}.png"): _png(image)
        for kind, image in label_images(annotation).items()
    }
    text = json.dumps(annotation)
    contents[annotation_file(job.split, job.name, "polygons.json")] = text.encode()
    contents[image_file(job.split, job.name)] = _png(Image.fromarray(picture))
    for path, content in contents.items():
        write_atomically(folder / path, content, folder / PARTIAL)


def _need(folder: Path, job: Job) -> dict[str, Any]:
    """How much there is to see in an image: its density, and the visible pixels of each object."""
    path = folder / annotation_file(job.split, job.name, "instanceIds.png")
    ids, pixels = np.unique(np.asarray(Image.open(path)), return_counts=True)
    sizes = sorted(pixels[ids >= FIRST_INSTANCE].tolist())
    return {"density": job.density, "objects": len(sizes), "sizes": sizes}


def make_streetscapes(
    root: str | os.PathLike[str],
    *,
    train: int = 240,
    val: int = 60,
    height: int = 256,
    width: int = 512,
    seed: int = 0,
    workers: int = 1,
    unequal: float | None = None,
) -> None:
    """Generates street scenes in the layout of Cityscapes under ``root``/cityscapes.

    The same settings give the same bytes, however many workers there are. A run that finds its
    own complete result only makes what is missing from it; after an interrupted run, or for other
    settings, everything that this generator made in the folder is removed and made anew. Files
    from elsewhere are never touched.

    Args:
        root: folder to create "cityscapes" in; what $DETECTRON2_DATASETS should name.
        train, val: number of images per split.
        height, width: size of the images in pixels, at least 64 x 128.
        seed: chooses the scenes; not negative.
        workers: number of processes.
        unequal: how much scenes differ in what there is to see, in [0, 1]. Their densities (see
            ``draw_scene``) are spread evenly over (1 ± ``unequal``) / 2, by day and without rain: 0
            makes all alike, 1 mixes everything from an empty highway to a dense town. None draws
            the four characters.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the folder holds images or annotations that this generator did not make.
    """
    check_counts(train=train, val=val, workers=workers, seed=seed)
    check_size(height, width)
    if unequal is not None and not 0.0 <= unequal <= 1.0:
        raise ConfigError(f"unequal is a number from 0 to 1, not {unequal}.")
    counts = {"train": train, "val": val}
    settings: dict[str, Any] = {**counts, "height": height, "width": width, "seed": seed}
    if unequal is not None:  # absent from records of scenes that were drawn before it existed
        settings["unequal"] = unequal
    plans = {split: plan_split(split, counts[split], seed, unequal) for split in SPLITS}
    names = {split: [job.name for job in plans[split]] for split in SPLITS}
    scenes = scenes_below(root)
    missing = scenes.prepare(settings, names)
    if not missing:
        return
    make = functools.partial(
        _make_image, folder=scenes.folder, height=height, width=width, seed=seed
    )
    run_jobs(scenes.jobs_for(missing, plans), make, workers, "street scenes")
    characters = {split: {job.name: job.character for job in plans[split]} for split in SPLITS}
    scenes.write_json(CHARACTERS_FILE, characters)
    needs = {
        split: {job.name: _need(scenes.folder, job) for job in plans[split]} for split in SPLITS
    }
    scenes.write_json(NEEDS_FILE, needs, indent=None)
    scenes.finish(settings, names)
