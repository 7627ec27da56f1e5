"""Scores of finished runs on data of known subsets: are the subsets found again?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from ..errors import DataError
from ..experts import (
    gate_weights,
    kmeans_recovery,
    linear_recovery,
    matched_share,
    mixture_recovery,
    weighted,
)
from ..image_files import read_labels

_SUBSETS_FILE = "subsets.json"


def subset_recovery(folder: str | os.PathLike[str]) -> dict[str, float]:
    """How well a run's gate activations on its first test set recover the subsets.

    Args:
        folder: ``OUTPUT_DIR`` of a run on ``subsets_val`` (``divdr.data``), evaluated.

    Returns:
        In percent of the images: "kmeans", by K-means on A, fresh; "kmeans_std", the same with
        gates divided by their spread; "mixture", by a fresh mixture; "centres", by the experts of
        the training (left out where there are none); "linear", by a linear classifier of A. See
        ``divdr.experts``.

    Raises:
        DataError: the folder holds no evaluated run, or its images are of no known subsets.
    """
    folder = os.fspath(folder)
    dataset = next(iter(_results(folder)))
    path = os.path.join(folder, "inference", f"activations_{dataset}.npz")
    if not os.path.exists(path):
        raise DataError(f"{folder} holds no evaluated run with routing: {path} is missing")
    with np.load(path) as saved:
        names = [str(name) for name in saved["file_names"]]
        a, expert = torch.from_numpy(saved["activations"]), torch.from_numpy(saved["expert"])
    subset = _subsets(names)
    figures = {
        "kmeans": 100 * kmeans_recovery(a, subset),
        "kmeans_std": 100 * kmeans_recovery(weighted(a, gate_weights(a, "std")), subset),
        "mixture": 100 * mixture_recovery(a, subset),
        "linear": 100 * linear_recovery(a, subset),
    }
    if bool((expert >= 0).all()):
        figures["centres"] = 100 * matched_share(expert, subset)
    return figures


def pooled_miou(folders: Sequence[str | os.PathLike[str]]) -> float:
    """mIoU, in percent, over the test images of several runs together.

    For one network per subset: IoU is that of all pixels of all runs, as if one network had
    labelled them.

    Raises:
        DataError: a folder holds no evaluated segmentation run.
    """
    counts = np.zeros((256, 256), np.int64)
    for folder in folders:
        path = os.path.join(folder, "inference", "sem_seg_predictions.json")
        if not os.path.exists(path):
            raise DataError(f"{folder} holds no evaluated segmentation: {path} is missing")
        with open(path, encoding="utf-8") as file:
            predictions = json.load(file)
        by_image: dict[str, list[Mapping[str, Any]]] = {}
        for part in predictions:
            by_image.setdefault(part["file_name"], []).append(part)
        for name, parts in by_image.items():
            truth = _labels(name)
            found = np.full(truth.shape, 255, np.uint8)
            for part in parts:
                found[coco_mask.decode(part["segmentation"]).astype(bool)] = part["category_id"]
            np.add.at(counts, (truth[truth != 255], found[truth != 255]), 1)
    right = counts.diagonal().astype(float)
    union = counts.sum(0) + counts.sum(1) - right
    present = counts.sum(1) > 0
    return float(100 * (right[present] / union[present]).mean())


def _results(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "inference", "results.json")
    if not os.path.exists(path):
        raise DataError(f"{folder} holds no evaluated run: {path} is missing")
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _subsets(names: Sequence[str]) -> torch.Tensor:
    """Subsets (N,) of images that lie in subsets/images/SPLIT."""
    path = os.path.join(os.path.dirname(names[0]), "..", "..", _SUBSETS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        stems = [os.path.splitext(os.path.basename(name))[0] for name in names]
        return torch.tensor([int(known[stem]) for stem in stems])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the subsets of {os.path.dirname(names[0])} are not known: {path} ({error!r})"
        ) from None


def _labels(name: str) -> np.ndarray:
    folder, file = os.path.split(name)
    top, split = os.path.split(folder)
    return read_labels(os.path.join(os.path.dirname(top), "labels", split, file))
