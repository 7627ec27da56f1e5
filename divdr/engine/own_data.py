"""Settings that follow from a data set of one's own."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import check_datasets, evaluation_dicts, read_once, register_custom
from ..data.classes import predicted_stuff, predicted_things
from ..data.coco_json import reading
from ..errors import ConfigError
from ..image_files import image_size
from .config_file import merge_pairs

logger = logging.getLogger(__name__)

_SAMPLE = 200  # images whose sizes are read
_STEP = 32  # crops are multiples of the coarsest map's stride
_FEWEST, _MOST = 300, 20000  # iterations


def fitted_if_asked(cfg: CfgNode, overrides: Sequence[Any] = ()) -> CfgNode:
    """The config, or where ``DATASETS.FIT`` says so a copy that is fitted to its data.

    The data sets of ``DATASETS.CUSTOM`` are registered, as each process has to.

    Args:
        cfg: the whole configuration, or Detectron2's own.
        overrides: ``KEY VALUE`` pairs, which count for more than the data.

    Raises:
        ConfigError, DataError: see :func:`fit_to_data` and ``divdr.data.register_custom``.
    """
    register_custom(cfg.DATASETS.get("CUSTOM", ()))
    if not cfg.DATASETS.get("FIT", False):
        return cfg
    keys = {str(key): value for key, value in zip(overrides[::2], overrides[1::2], strict=False)}
    # What the schedule's other parts follow from.
    iterations = cfg.SOLVER.MAX_ITER if "SOLVER.MAX_ITER" in keys else None
    fitted = fit_to_data(cfg, iterations=iterations)
    data = ("DATASETS.FIT", "DATASETS.CUSTOM", "DATASETS.TRAIN", "DATASETS.TEST")
    pairs = [(key, value) for key, value in keys.items() if key not in data]
    merge_pairs(fitted, [part for pair in pairs for part in pair])
    return fitted


def fit_to_data(
    cfg: CfgNode, *, epochs: int = 60, longest: int = 512, iterations: int | None = None
) -> CfgNode:
    """A copy of a config with the settings that its data set decides.

    - Classes: as many as the training set has, for a semantic segmentation
      (``MODEL.SEM_SEG_HEAD``), a detector (``MODEL.ROI_HEADS`` or ``MODEL.RETINANET``) or a
      classifier (``MODEL.CLASSIFIER``; a Hydra has no more branches than that). Of label files also
      the ignored label; of masks, whether they are polygons (``INPUT.MASK_FORMAT``).
    - ``INPUT``: images are trained on and evaluated at their median size, or smaller where that is
      longer than ``longest``; in training, images are scaled by 3/4 to 5/4. Crops, where the config
      has them, have that size. A classifier's images become squares of their median longer side,
      or of ``INPUT.CLASSIFICATION.SIZE`` where that is shorter.
    - ``SOLVER``: as many iterations as ``epochs`` passes over the training images take, at least
      300 and at most 20,000; warm-up over their first twentieth, ten checkpoints.
    - Batch and experts are no more than there are images.
    - ``DATASETS.FIT``: False, since it is done.

    Args:
        cfg: with ``DATASETS.TRAIN``.
        epochs: passes over the training set.
        longest: most pixels of an image's longer side.
        iterations: so many, instead of passes; None: by ``epochs``.

    Raises:
        ConfigError: there is no training set, or it has no classes of the model's kind.
        DataError: it cannot be read.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError(
            "DATASETS.TRAIN names no data set whose images the settings could be fitted to; "
            "DATASETS.CUSTOM describes one of your own (docs/guide/own_data.md)"
        )
    fitted = cfg.clone()
    fitted.defrost()
    fitted.DATASETS.FIT = False
    check_datasets(names)
    with read_once(names):
        with reading(names[:1]):
            DatasetCatalog.get(names[0])  # some know their classes only then
        classes = _fit_classes(fitted, names[0])
        dicts = evaluation_dicts(fitted, names)
    masks = (a.get("segmentation") for d in dicts for a in d.get("annotations", ()))
    if any(isinstance(mask, dict) for mask in masks):
        fitted.INPUT.MASK_FORMAT = "bitmask"
    height, width = _usual_size([d["file_name"] for d in dicts])
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        seen = [min(max(height, width), cfg.INPUT.CLASSIFICATION.SIZE or longest)] * 2
        fitted.INPUT.CLASSIFICATION.SIZE = seen[0]
    else:
        seen = _fit_sizes(fitted, height, width, longest)
    fitted.SOLVER.IMS_PER_BATCH = batch = min(cfg.SOLVER.IMS_PER_BATCH, len(dicts))
    if iterations is None:
        iterations = min(_MOST, max(_FEWEST, -(-epochs * len(dicts) // batch)))
    fitted.SOLVER.MAX_ITER = iterations
    fitted.SOLVER.WARMUP_ITERS = iterations // 20
    fitted.SOLVER.CHECKPOINT_PERIOD = max(1, iterations // 10)
    clustering = fitted.MODEL.ROUTING.CLUSTERING
    clustering.NUM_EXPERTS = min(clustering.NUM_EXPERTS, len(dicts))
    logger.info(
        "%d images, usually of %d×%d pixels, %d classes: %d iterations of %d images of %d×%d",
        len(dicts),
        height,
        width,
        classes,
        iterations,
        batch,
        *seen,
    )
    return fitted


def _fit_classes(fitted: CfgNode, name: str) -> int:
    """Set numbers of classes and what belongs to them; returns how many there are."""
    metadata = MetadataCatalog.get(name)
    things, stuff = predicted_things(fitted)[0], predicted_stuff(fitted)[0]
    wanted = [(things, "thing_classes", "detection"), (stuff, "stuff_classes", "segmentation")]
    classifies = fitted.INPUT.DATASET_MAPPER_NAME == "classification"
    if classifies:
        wanted = [("MODEL.CLASSIFIER.NUM_CLASSES", "classes", "classification of images")]
    elif not things and not stuff:  # an architecture that is not Detectron2's own
        stuff = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
        wanted = [(stuff, "stuff_classes", "segmentation")]
    count = 0
    for key, kind, task in wanted:
        if not key:
            continue
        count = len(metadata.get(kind, None) or ())
        if not count:
            what = f"semantic {task}" if kind == "stuff_classes" else task
            raise ConfigError(f"data set {name!r} has no classes for {what}")
        merge_pairs(fitted, [key, count])
    if stuff:
        fitted.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = metadata.get("ignore_label", 255)
    if classifies:
        hydra = fitted.MODEL.CLASSIFIER.HYDRA
        hydra.BRANCHES = min(hydra.BRANCHES, count)
        hydra.TOP_K = min(hydra.TOP_K, hydra.BRANCHES)
    return count


def _fit_sizes(fitted: CfgNode, height: int, width: int, longest: int) -> list[int]:
    """Set the sizes of images; returns rows and columns of crops, or of images as they come."""
    scale = min(1.0, longest / max(height, width))
    short, long = round(min(height, width) * scale), round(max(height, width) * scale)
    sizes = tuple(max(1, round(short * factor)) for factor in (0.75, 1.0, 1.25))
    fitted.INPUT.MIN_SIZE_TRAIN, fitted.INPUT.MAX_SIZE_TRAIN = sizes, 2 * long
    fitted.INPUT.MIN_SIZE_TEST, fitted.INPUT.MAX_SIZE_TEST = short, 2 * long
    whole = [-(-round(side * scale) // _STEP) * _STEP for side in (height, width)]
    if fitted.INPUT.CROP.ENABLED:
        fitted.INPUT.CROP.SIZE = whole
    fitted.MODEL.ROUTING.COST_SIZES = [whole]
    return whole


def _usual_size(files: Sequence[str]) -> tuple[int, int]:
    """Medians of rows and columns, of images spread over the data set."""
    chosen = files[:: max(1, len(files) // _SAMPLE)]
    sizes = [image_size(file) for file in chosen]
    rows, columns = [rows for rows, _, _ in sizes], [columns for _, columns, _ in sizes]
    return int(statistics.median(rows)), int(statistics.median(columns))
