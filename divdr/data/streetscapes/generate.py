"""Writing whole data sets of street scenes, in parallel and safe against interruption."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from divdr.errors import ConfigError, DataError

from .draw import check_size, draw_scene
from .labels import label_images
from .naming import SPLITS, Job, annotation_file, image_file, image_files, plan_split
from .record import (
    CHARACTERS_FILE,
    PARTIAL,
    RECORD,
    VERSION,
    read_record,
    recorded_files,
    write_atomically,
    write_json,
)


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    # Level 3 is several times faster than the default and hardly larger for noisy pictures.
    image.save(content, "PNG", compress_level=3)
    return content.getvalue()


def _make_image(job: Job, folder: Path, height: int, width: int, seed: int) -> None:
    # Seeded by the image's place alone, so the number of workers and their order do not matter.
    rng = np.random.default_rng([seed, SPLITS.index(job.split), job.index])
    picture, annotation = draw_scene(job.character, height, width, rng)
    contents = {
        annotation_file(job.split, job.name, f"{kind}.png"): _png(image)
        for kind, image in label_images(annotation).items()
    }
    text = json.dumps(annotation)
    contents[annotation_file(job.split, job.name, "polygons.json")] = text.encode()
    contents[image_file(job.split, job.name)] = _png(Image.fromarray(picture))
    for path, content in contents.items():
        write_atomically(folder / path, content, folder / PARTIAL)


@contextlib.contextmanager
def _finished_jobs(jobs: list[Job], make: functools.partial[None], workers: int) -> Iterator[Any]:
    if workers == 1 or len(jobs) <= 1:
        yield map(make, jobs)
        return
    # Forked processes need not import everything again, which takes longer than many images.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # The processes share the cores already; and forks must not inherit OpenCV's threads.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=cv2.setNumThreads, initargs=(1,)
    )
    try:
        yield pool.map(make, jobs, chunksize=max(1, min(8, len(jobs) // (4 * workers))))
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _foreign_files(folder: Path, known: set[Path]) -> list[Path]:
    present = (
        path.relative_to(folder)
        for top in ("leftImg8bit", "gtFine")
        for split in SPLITS
        for path in (folder / top / split).rglob("*")
        if not path.is_dir()
    )
    return sorted(path for path in present if path not in known)


def _clear(folder: Path, files: set[Path]) -> None:
    for path in files:
        (folder / path).unlink(missing_ok=True)
    for path in {path.parent for path in files}:
        with contextlib.suppress(OSError):  # other things are in it, or it is gone
            (folder / path).rmdir()
    (folder / CHARACTERS_FILE).unlink(missing_ok=True)


def _check(train: int, val: int, height: int, width: int, seed: int, workers: int) -> None:
    for name, value in (("train", train), ("val", val), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    if seed < 0:
        raise ConfigError(f"seed must not be negative, but is {seed}.")
    check_size(height, width)


def make_streetscapes(
    root: str | os.PathLike[str],
    *,
    train: int = 240,
    val: int = 60,
    height: int = 256,
    width: int = 512,
    seed: int = 0,
    workers: int = 1,
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

    Raises:
        ConfigError: an argument is out of range.
        DataError: the folder holds images or annotations that this generator did not make.
    """
    _check(train, val, height, width, seed, workers)
    folder = Path(root) / "cityscapes"
    settings = {"train": train, "val": val, "height": height, "width": width, "seed": seed}
    plans = {split: plan_split(split, settings[split], seed) for split in SPLITS}
    record: dict[str, Any] = {
        "version": VERSION,
        "settings": settings,
        "images": {split: [job.name for job in plans[split]] for split in SPLITS},
        "complete": False,
    }
    earlier = read_record(folder)
    known = recorded_files(earlier) if earlier else set()
    foreign = _foreign_files(folder, known)
    if foreign:
        raise DataError(
            f"{folder} holds {foreign[0]}, which this generator did not make; "
            "choose another output folder."
        )
    if earlier != {**record, "complete": True}:
        _clear(folder, known)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    characters = {split: {job.name: job.character for job in plans[split]} for split in SPLITS}

    def is_missing(path: Path) -> bool:
        return not (folder / path).is_file() or (folder / path).stat().st_size == 0

    jobs = [
        job
        for split in SPLITS
        for job in plans[split]
        if any(map(is_missing, image_files(split, job.name)))
    ]
    if not jobs and not is_missing(Path(CHARACTERS_FILE)):
        return
    write_json(folder / RECORD, record)
    make = functools.partial(_make_image, folder=folder, height=height, width=width, seed=seed)
    with _finished_jobs(jobs, make, workers) as finished:
        for _ in tqdm(finished, total=len(jobs), desc="street scenes", unit="image"):
            pass
    write_json(folder / CHARACTERS_FILE, characters)
    write_json(folder / RECORD, {**record, "complete": True})
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
