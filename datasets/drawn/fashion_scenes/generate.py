"""Writing whole data sets of garment scenes: COCO's annotations and Cityscapes' label pictures."""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from divdr.data.classification.formats import read_fashion_mnist
from divdr.errors import ConfigError, DataError
from divdr.image_files import image_files as find_images

from ..files import PARTIAL, SPLITS, DrawnSet, check_counts, run_jobs, write_atomically
from ..shapes_coco import masks
from .scene import CLASSES, Garments, Scene, paste_scene

#: Raised whenever the same settings would give different files.
VERSION = 1

FOLDER = "fashion_scenes"
RECORD = "fashion_scenes.json"
NEEDS = Path("needs.json")
SMALLEST = 48  # pixels of the shorter side

#: As in Cityscapes' pictures of instances: class · 1000 + number.
PER_CLASS = 1000

_TOPS = ("images", "labels", "instances")


@dataclass(frozen=True)
class _Job:
    split: str
    image_id: int
    density: float

    @property
    def name(self) -> str:
        return f"{self.image_id:06d}"


def _file(top: str, split: str, name: str) -> Path:
    return Path(top, split, f"{name}.png")


def _files(split: str, name: str) -> list[Path]:
    return [_file(top, split, name) for top in _TOPS]


def _annotation_file(split: str) -> Path:
    return Path("annotations", f"instances_{split}.json")


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=3)
    return content.getvalue()


def _background(
    files: list[Path], height: int, width: int, rng: np.random.Generator
) -> np.ndarray | None:
    """A random part of a random photograph, enlarged where it is too small; None without any."""
    if not files:
        return None
    path = files[int(rng.integers(len(files)))]
    try:
        photograph = np.asarray(Image.open(path).convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    scale = max(height / photograph.shape[0], width / photograph.shape[1])
    if scale > 1.0:
        rows, columns = (round(length * scale) for length in photograph.shape[:2])
        size = (max(columns, width), max(rows, height))
        photograph = cv2.resize(photograph, size, interpolation=cv2.INTER_LINEAR)
    top = int(rng.integers(photograph.shape[0] - height + 1))
    left = int(rng.integers(photograph.shape[1] - width + 1))
    return photograph[top : top + height, left : left + width]


def _make_image(
    job: _Job,
    folder: Path,
    garments: dict[str, Garments],
    backgrounds: list[Path],
    size: tuple[int, int],
    seed: int,
) -> dict[str, Any]:
    # Seeded by the image's place alone, so the number of workers and their order do not matter.
    rng = np.random.default_rng([seed, SPLITS.index(job.split), job.image_id])
    background = _background(backgrounds, *size, rng)
    scene = paste_scene(garments[job.split], *size, job.density, rng, background)
    labels, ids, annotations = _annotated(scene, job.image_id)
    contents = {"images": scene.picture, "labels": labels, "instances": ids}
    for top, image in contents.items():
        path = folder / _file(top, job.split, job.name)
        write_atomically(path, _png(image), folder / PARTIAL)
    entry = {
        "id": job.image_id,
        "file_name": f"{job.name}.png",
        "height": size[0],
        "width": size[1],
    }
    return {"image": entry, "annotations": annotations}


def _annotated(scene: Scene, image_id: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Labels (H, W) uint8, instance ids (H, W) uint16, and COCO's entries of the objects."""
    labels = np.zeros(scene.owner.shape, np.uint8)
    ids = np.zeros(scene.owner.shape, np.uint16)
    found, counts = [], [0] * len(CLASSES)
    for number, kind in enumerate(scene.classes):
        mask = scene.owner == number
        labels[mask] = kind + 1
        ids[mask] = (kind + 1) * PER_CLASS + counts[kind]
        counts[kind] += 1
        found.append(
            {
                "id": image_id * PER_CLASS + number,
                "image_id": image_id,
                "category_id": kind + 1,
                "iscrowd": 0,
                "bbox": list(masks.bounding_box(mask)),
                "area": int(mask.sum()),
                "segmentation": masks.polygons(mask),
            }
        )
    return labels, ids, found


def make_fashion_scenes(
    root: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    train: int = 240,
    val: int = 60,
    height: int = 128,
    width: int = 256,
    unequal: float = 1.0,
    backgrounds: str | os.PathLike[str] = "",
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Pastes Fashion-MNIST's photographs into scenes under ``root``/fashion_scenes.

    Training scenes show its training photographs, the others its test photographs. Otherwise as
    ``make_streetscapes``: the same settings give the same bytes; a complete result is left alone.

    Args:
        root: folder to create "fashion_scenes" in.
        source: folder with Fashion-MNIST's four files.
        train: number of training images.
        val: number of validation images.
        height: rows, at least 48.
        width: columns, at least 48.
        unequal: how much scenes differ in need, in [0, 1]: their densities (``paste_scene``) are
            spread evenly over (1 ± ``unequal``) / 2.
        backgrounds: folder of photographs to paste into; "" draws noise.
        seed: chooses the scenes; not negative.
        workers: number of processes.

    Raises:
        ConfigError: an argument is out of range.
        DataError: photographs are missing or cannot be read, or the folder holds files that this
            generator did not make.
    """
    check_counts(train=train, val=val, workers=workers, seed=seed)
    if min(height, width) < SMALLEST:
        raise ConfigError(
            f"scenes need at least {SMALLEST}×{SMALLEST} pixels, not {height}×{width}"
        )
    if not 0.0 <= unequal <= 1.0:
        raise ConfigError(f"unequal is a number from 0 to 1, not {unequal}.")
    photographs = find_images(Path(backgrounds)) if backgrounds else []
    if backgrounds and not photographs:
        raise DataError(f"{backgrounds} holds no images to paste into")
    garments = {}
    for split, theirs in zip(SPLITS, ("train", "test"), strict=True):
        images = read_fashion_mnist(Path(source), theirs)
        garments[split] = Garments(images.pixels, images.labels)
    counts = {"train": train, "val": val}
    settings: dict[str, Any] = {
        **counts,
        "height": height,
        "width": width,
        "unequal": unequal,
        "seed": seed,
    }
    settings["backgrounds"] = [path.name for path in photographs]
    plans: dict[str, list[_Job]] = {}
    for place, split in enumerate(SPLITS):
        steps = (np.arange(counts[split]) + 0.5) / counts[split] - 0.5
        densities = np.random.default_rng([seed, place]).permutation(0.5 + unequal * steps)
        first = 1 + place * train
        plans[split] = [_Job(split, first + i, float(d)) for i, d in enumerate(densities)]
    names = {split: [job.name for job in plans[split]] for split in SPLITS}
    data = DrawnSet(
        folder=Path(root) / FOLDER,
        record_name=RECORD,
        version=VERSION,
        image_files=_files,
        own_folders=(Path("annotations"), *(Path(top, s) for top in _TOPS for s in SPLITS)),
        summaries=(NEEDS, *(_annotation_file(split) for split in SPLITS)),
    )
    if not data.prepare(settings, names):
        return
    make = functools.partial(
        _make_image,
        folder=data.folder,
        garments=garments,
        backgrounds=photographs,
        size=(height, width),
        seed=seed,
    )
    # Annotations of all images share files, so a single missing image has all of them made anew.
    needs: dict[str, Any] = {}
    for split in SPLITS:
        made = run_jobs(plans[split], make, workers, f"fashion scenes, {split}")
        content = {
            "info": {"description": "Scenes of Fashion-MNIST's photographs"},
            "images": [one["image"] for one in made],
            "annotations": [each for one in made for each in one["annotations"]],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }
        data.write_json(_annotation_file(split), content, indent=None)
        needs[split] = {
            job.name: _need(job, one["annotations"])
            for job, one in zip(plans[split], made, strict=True)
        }
    data.write_json(NEEDS, needs, indent=None)
    data.finish(settings, names)


def _need(job: _Job, annotations: list[dict]) -> dict[str, Any]:
    sizes = sorted(each["area"] for each in annotations)
    return {"density": job.density, "objects": len(sizes), "sizes": sizes}
