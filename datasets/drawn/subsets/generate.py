"""Writing data sets of known subsets, in parallel and safe against interruption."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from divdr.data.drawn_sets import MAX_SUBSETS, SUBSETS_FILE
from divdr.errors import ConfigError

from ..files import PARTIAL, SPLITS, check_counts, run_jobs, write_atomically
from .digits import draw_digits
from .look import Look
from .record import image_file, label_file, scenes_below
from .shapes import draw_shapes

KINDS = ("shapes", "digits")


@dataclass(frozen=True)
class _Scenes:
    kind: str
    size: int
    seed: int
    look: Look


@dataclass(frozen=True)
class _Job:
    split: str
    index: int
    subset: int

    @property
    def name(self) -> str:
        return f"{self.split}_{self.index:05d}"


def make_subsets(
    root: str | os.PathLike[str],
    *,
    kind: str = "shapes",
    dial: float = 0.5,
    nuisance: float = 0.0,
    shares: Sequence[float] = (),
    subsets: int = 3,
    train: int = 600,
    val: int = 300,
    size: int = 64,
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Generates scenes of known subsets under ``root``/subsets.

    The same settings give the same bytes, however many workers there are; see
    ``make_streetscapes`` for what happens to files that are there already. Subsets take turns,
    as often as their shares say.

    Args:
        root: folder to create "subsets" in; what $DETECTRON2_DATASETS should name.
        kind: "shapes" or "digits".
        dial: how hard subsets are to tell apart, from 0 to 1.
        nuisance: how much images differ in what does not matter, from 0 to 1.
        shares: of the subsets in the images of a split, K positive numbers; () for equal ones.
        subsets: K, from 2 to 4.
        train, val: number of images per split.
        size: rows and columns in pixels, a multiple of 32.
        seed: chooses the scenes; not negative.
        workers: number of processes.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the folder holds images that this generator did not make.
    """
    check_counts(train=train, val=val, workers=workers, seed=seed)
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    for name, value in (("dial", dial), ("nuisance", nuisance)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} must lie between 0 and 1, not at {value}.")
    if not 2 <= subsets <= MAX_SUBSETS:
        raise ConfigError(f"subsets must be 2 to {MAX_SUBSETS}, not {subsets}.")
    if size < 32 or size % 32:
        raise ConfigError(f"size must be a multiple of 32, not {size}.")
    if shares and (len(shares) != subsets or min(shares) <= 0):
        raise ConfigError(f"shares must be {subsets} positive numbers, not {list(shares)}.")
    plan = _Scenes(kind, size, seed, Look(subsets, dial, nuisance))
    settings = {
        **vars(plan),
        "look": vars(plan.look),
        "shares": list(shares),
        "train": train,
        "val": val,
    }
    plans = {
        split: [
            _Job(split, index, subset)
            for index, subset in enumerate(_turns(shares or [1.0] * subsets, settings[split]))
        ]
        for split in SPLITS
    }
    names = {split: [job.name for job in plans[split]] for split in SPLITS}
    scenes = scenes_below(root)
    missing = scenes.prepare(settings, names)
    if not missing:
        return
    make = functools.partial(_make_image, folder=scenes.folder, plan=plan)
    run_jobs(scenes.jobs_for(missing, plans), make, workers, "scenes of subsets")
    members = {job.name: job.subset for split in SPLITS for job in plans[split]}
    scenes.write_json(SUBSETS_FILE, members, indent=None)
    scenes.finish(settings, names)


def _turns(shares: Sequence[float], count: int) -> list[int]:
    """The subset of each of ``count`` images: always the one that is furthest behind its share."""
    made = [0] * len(shares)
    turns = []
    for total in range(1, count + 1):
        behind = [share / sum(shares) * total - n for share, n in zip(shares, made, strict=True)]
        turns.append(behind.index(max(behind)))
        made[turns[-1]] += 1
    return turns


def _make_image(job: _Job, folder: Path, plan: _Scenes) -> None:
    # Seeded by the image's place alone, so the number of workers and their order do not matter.
    rng = np.random.default_rng([plan.seed, SPLITS.index(job.split), job.index])
    common = (plan.size, job.subset, plan.look, rng)
    if plan.kind == "shapes":
        picture, labels = draw_shapes(*common)
    else:
        picture, labels = draw_digits(*common, held_out=job.split == "val")
    for path, pixels in (
        (image_file(job.split, job.name), picture),
        (label_file(job.split, job.name), labels),
    ):
        write_atomically(folder / path, _png(pixels), folder / PARTIAL)


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
