"""How many pixels of a data set's labels each class has, and class weights from that."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from detectron2.config import CfgNode

from ..errors import ConfigError, DataError
from ..image_files import check_label_map, read_labels
from .catalog import training_dicts

logger = logging.getLogger(__name__)

FREQUENCIES_FILE = "class_frequencies.json"
"""Name of the file beside a run that keeps what was counted."""


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
