"""On which images one network is better than another: accuracy and cost of each against its need.

Of segmentation on drawn scenes, whose files say how many objects an image shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..checkpoint import write_text_atomically
from ..data import load_scenes
from ..engine.predictor import Predictor
from ..errors import DataError
from ..visualization import Gain, Need
from .statistics import first_routes, paired_difference

_IGNORED = 255
_PARTS = 3  # of the images, by their need: few, some, many objects


def image_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of one image, the mean over the classes that it shows.

    Args:
        predicted: (H, W) number of the class of each pixel.
        truth: (H, W), likewise; 255 pixels are left out.

    Returns:
        From 0 to 1; NaN for an image without truth.
    """
    valid = truth != _IGNORED
    predicted, truth = predicted[valid], truth[valid]
    shown = np.unique(truth)
    if not len(shown):
        return float("nan")
    ious = []
    for kind in shown:
        own, found = truth == kind, predicted == kind
        ious.append((own & found).sum() / (own | found).sum())
    return float(np.mean(ious))


def ious_by_image(folder: Path) -> dict[str, float]:
    """IoU of each test image of a finished run (``image_iou``), by file.

    Measured once and kept in the run's folder. {} for a run without a routed backbone, which does
    not tell its test images.

    Args:
        folder: of a run on drawn scenes.

    Raises:
        DataError: the images are no drawn scenes.
    """
    kept = folder / "image_ious.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    routes = first_routes(folder)
    if routes is None:
        return {}
    predictor = Predictor.from_files(folder / "model_final.pth")
    found = {}
    for name, scene in zip(routes.file_names, load_scenes(routes.file_names), strict=True):
        truth = np.asarray(Image.open(scene.labels))
        scores = predictor(name)["sem_seg"]
        found[name] = image_iou(scores.argmax(0).cpu().numpy(), truth)
    write_text_atomically(kept, json.dumps(found))
    return found


def costs_and_needs(folder: Path) -> Need:
    """Real cost of each test image of a finished run, and how many objects it shows.

    Args:
        folder: of a run with a routed backbone on drawn scenes.

    Raises:
        DataError: the images are no drawn scenes, or the run has no routed backbone.
    """
    routes = first_routes(folder)
    if routes is None:
        raise DataError(f"{folder} has no routes of test images")
    objects = [scene.objects for scene in load_scenes(routes.file_names)]
    return Need(objects, (routes.real_cost / 1e9).tolist())


def gains_by_need(pairs: Iterable[tuple[Path, Path]]) -> list[Gain]:
    """By how much a network is better than another on images of few, some and many objects.

    Images are ranked by their objects and parted in three as equal as can be; images of as many
    objects stay together in the part where the first of them falls. The difference of an image is
    its mean over the pairs of runs, and the interval is Student's t over images.

    Args:
        pairs: folders of finished runs (a, b) with the same test images, seed by seed.

    Returns:
        IoU of b less that of a, in per cent, for each part that has images.

    Raises:
        DataError: the images are no drawn scenes.
        ValueError: there is no pair.
    """
    found = [(ious_by_image(a), ious_by_image(b)) for a, b in pairs]
    if not found:
        raise ValueError("no pair of runs")
    first = found[0][0]
    names = sorted(name for name in first if np.isfinite(first[name]))
    scores_a, scores_b = (_means([pair[side] for pair in found], names) for side in (0, 1))
    objects = np.array([scene.objects for scene in load_scenes(names)])
    gains = []
    for part in _parts(objects):
        difference = paired_difference(scores_a[part], scores_b[part])
        few, many = int(objects[part].min()), int(objects[part].max())
        gains.append(Gain(few, many, len(part), difference.mean, difference.low, difference.high))
    return gains


def _means(runs: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    return 100.0 * np.mean([[run[name] for name in names] for run in runs], axis=0)


def _parts(objects: np.ndarray) -> list[np.ndarray]:
    """Numbers of the images of each part."""
    order = np.argsort(objects, kind="stable")
    ranks = np.searchsorted(objects[order], objects)  # of the first with as many
    part = ranks * _PARTS // len(objects)
    return [np.flatnonzero(part == number) for number in range(_PARTS) if (part == number).any()]
