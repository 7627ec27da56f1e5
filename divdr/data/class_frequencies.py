"""How often each class occurs: class weights by pixels, and images repeated for rare ones."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from detectron2.config import CfgNode

from ..errors import ConfigError, DataError
from ..image_files import check_label_map, read_labels
from .catalog import training_dicts
from .classes import predicted_stuff

logger = logging.getLogger(__name__)

FREQUENCIES_FILE = "class_frequencies.json"
"""Name of the file beside a run that keeps what was counted."""


# What label files show, by their fingerprint.
_SHOWN: dict[str, list[frozenset[int]]] = {}


@dataclass(frozen=True)
class ClassFrequencies:
    """Pixels of a training set's label files; C classes.

    Attributes:
        pixels: (C,) pixels of each class.
        shown_in: (C,) labelled pixels of all images that show the class.
        labels: what was counted: a hash of the files' names and of how they were read.
    """

    pixels: list[int]
    shown_in: list[int]
    labels: str

    def weights(self, balance: str) -> list[float]:
        """Weights of the classes; one that no pixel has weighs 1.

        "median": median(f) / f, where f is the class's share of the labelled pixels of those images
        that show it (Eigen and Fergus, ICCV 2015, Section 6.3.2). "log": 1 / ln(1.02 + p), where p
        is its share of all labelled pixels (ENet, Section 5.2).

        Raises:
            ConfigError: ``balance`` is unknown.
        """
        pixels = np.array(self.pixels, np.float64)
        there = pixels > 0
        weights = np.ones(len(pixels))
        if balance == "median":
            shares = pixels[there] / np.array(self.shown_in)[there]
            weights[there] = np.median(shares) / shares if there.any() else 1.0
        elif balance == "log":
            weights[there] = 1 / np.log(1.02 + pixels[there] / pixels.sum())
        else:
            raise ConfigError(f'classes are balanced by "median" or "log", not {balance!r}')
        return weights.tolist()


def count_classes(cfg: CfgNode, folder: str = "") -> ClassFrequencies:
    """Count every pixel of the label files of ``DATASETS.TRAIN``, or read what was counted before.

    Args:
        cfg: the whole configuration.
        folder: keeps the numbers in :data:`FREQUENCIES_FILE`; "" keeps none. What it holds is used
            if it is of the same files, of the same sizes in bytes.

    Raises:
        DataError: images have no label files, or one cannot be read or holds what is no class.
    """
    files = [
        str(record.get("sem_seg_file_name") or "")
        for record in training_dicts(cfg, annotations=False)
    ]
    if not all(files):
        raise DataError(
            f"classes of {', '.join(cfg.DATASETS.TRAIN)} cannot be balanced: {files.count('')} of "
            f"{len(files)} images have no label file"
        )
    head = cfg.MODEL.SEM_SEG_HEAD
    read = partial(_count, classes=head.NUM_CLASSES, ignore=head.IGNORE_VALUE)
    labels = _fingerprint(files, head.NUM_CLASSES, head.IGNORE_VALUE)
    path = os.path.join(folder, FREQUENCIES_FILE) if folder else ""
    known = _kept(path, labels)
    if known is not None:
        return known
    logger.info("Counting the classes of %d label files", len(files))
    pixels, shown_in = (np.zeros(head.NUM_CLASSES, np.int64) for _ in range(2))
    with ThreadPoolExecutor(8) as pool:
        for counts in pool.map(read, files):
            pixels += counts
            shown_in += np.where(counts > 0, counts.sum(), 0)
    found = ClassFrequencies(pixels.tolist(), shown_in.tolist(), labels)
    if path:
        with open(path, "w") as file:
            json.dump(asdict(found), file)
    return found


def shown_classes(cfg: CfgNode, dicts: Sequence[dict]) -> list[frozenset[int]]:
    """Which classes each image shows, by its boxes, its label file, or its own label.

    Label files are read whole, and what they show is kept as long as the process lives.

    Args:
        cfg: the whole configuration, which tells whether the model learns from label files.
        dicts: of the images.

    Raises:
        ConfigError: the images have none of the three, or not all of them.
        DataError: a label file cannot be read or holds what is no class.
    """
    if all("annotations" in record for record in dicts):
        return [frozenset(a["category_id"] for a in record["annotations"]) for record in dicts]
    files = [str(record.get("sem_seg_file_name") or "") for record in dicts]
    if predicted_stuff(cfg)[0] and all(files):
        head = cfg.MODEL.SEM_SEG_HEAD
        labels = _fingerprint(files, head.NUM_CLASSES, head.IGNORE_VALUE)
        if labels not in _SHOWN:
            logger.info("Reading which classes %d label files show", len(files))
            read = partial(_count, classes=head.NUM_CLASSES, ignore=head.IGNORE_VALUE)
            with ThreadPoolExecutor(8) as pool:
                counts = list(pool.map(read, files))
            _SHOWN[labels] = [frozenset(np.flatnonzero(each).tolist()) for each in counts]
        return _SHOWN[labels]
    if all(isinstance(record.get("label"), int) for record in dicts):
        return [frozenset([record["label"]]) for record in dicts]
    raise ConfigError(
        f'DATALOADER.SAMPLER_TRAIN "{cfg.DATALOADER.SAMPLER_TRAIN}" counts the classes of boxes, '
        "label files or images, which the data of DATASETS.TRAIN do not have; use "
        '"TrainingSampler"'
    )


def repeat_factors(
    shown: Sequence[frozenset[int]], threshold: float, sqrt: bool = True
) -> list[float]:
    """How often a pass shows each image, by its rarest class (LVIS, appendix B.2).

    A class that a share f of the images show repeats them by max(1, √(threshold / f)), or without
    the root; an image that shows no class comes once.

    Args:
        shown: of each image, see :func:`shown_classes`.
        threshold: share of images below which a class is rare.
        sqrt: whether the root is taken.
    """
    counts = Counter(number for classes in shown for number in classes)
    factors = {}
    for number, count in sorted(counts.items()):
        factor = threshold * len(shown) / count
        factors[number] = max(1.0, math.sqrt(factor) if sqrt else factor)
        logger.info("Class %d: in %d images, repeated by %.2f", number, count, factors[number])
    return [max((factors[number] for number in classes), default=1.0) for classes in shown]


def _count(path: str, classes: int, ignore: int) -> np.ndarray:
    labels = read_labels(path)
    check_label_map(labels, path, classes=classes, ignore=ignore)
    return np.bincount(labels[labels != ignore].ravel(), minlength=classes)


def _fingerprint(files: Sequence[str], classes: int, ignore: int) -> str:
    told = hashlib.sha256(f"{classes} {ignore}".encode())
    for path in files:
        try:
            size = os.path.getsize(path)
        except OSError:  # not on this machine's disk
            size = 0
        told.update(f"\n{path} {size}".encode())
    return told.hexdigest()


def _kept(path: str, labels: str) -> ClassFrequencies | None:
    try:
        with open(path) as file:
            known = ClassFrequencies(**json.load(file))
    except (OSError, ValueError, TypeError):  # none, or cut short: counted anew
        return None
    return known if known.labels == labels else None
