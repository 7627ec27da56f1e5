"""Settings that follow from a data set of one's own."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..data import evaluation_dicts
from ..errors import ConfigError
from ..image_files import image_size

logger = logging.getLogger(__name__)

_SAMPLE = 200  # images whose sizes are read
_STEP = 32  # crops are multiples of the coarsest map's stride
_FEWEST, _MOST = 300, 20000  # iterations


def fit_to_data(cfg: CfgNode, *, epochs: int = 60, longest: int = 512) -> CfgNode:
    """A copy of a config for semantic segmentation with the settings that its data set decides.

    - ``MODEL.SEM_SEG_HEAD``: as many classes as the training set has, and its ignored label.
    - ``INPUT``: images are trained on and evaluated at their median size, or smaller where that is
      longer than ``longest``; crops have that size; in training, images are scaled by 3/4 to 5/4.
    - ``SOLVER``: as many iterations as ``epochs`` passes over the training images take, at least
      300 and at most 20,000; warm-up over their first twentieth, ten checkpoints.
    - Batch and experts are no more than there are images.

    Args:
        cfg: with ``DATASETS.TRAIN``.
        epochs: passes over the training set.
        longest: most pixels of an image's longer side.

    Raises:
        ConfigError: the training set has no classes for semantic segmentation.
        DataError: it cannot be read.
    """
    names = list(cfg.DATASETS.TRAIN)
    dicts = evaluation_dicts(cfg, names)
    metadata = MetadataCatalog.get(names[0])
    classes = metadata.get("stuff_classes", None)
    if not classes:
        raise ConfigError(f"data set {names[0]!r} has no classes for semantic segmentation")
    height, width = _usual_size([d["file_name"] for d in dicts])
    scale = min(1.0, longest / max(height, width))
    short, long = round(min(height, width) * scale), round(max(height, width) * scale)
    fitted = cfg.clone()
    fitted.defrost()
    fitted.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(classes)
    fitted.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = metadata.get("ignore_label", 255)
    sizes = tuple(max(1, round(short * factor)) for factor in (0.75, 1.0, 1.25))
    fitted.INPUT.MIN_SIZE_TRAIN, fitted.INPUT.MAX_SIZE_TRAIN = sizes, 2 * long
    fitted.INPUT.MIN_SIZE_TEST, fitted.INPUT.MAX_SIZE_TEST = short, 2 * long
    crop = [-(-round(side * scale) // _STEP) * _STEP for side in (height, width)]
    fitted.INPUT.CROP.SIZE = crop
    fitted.SOLVER.IMS_PER_BATCH = batch = min(cfg.SOLVER.IMS_PER_BATCH, len(dicts))
    iterations = min(_MOST, max(_FEWEST, -(-epochs * len(dicts) // batch)))
    fitted.SOLVER.MAX_ITER = iterations
    fitted.SOLVER.WARMUP_ITERS = iterations // 20
    fitted.SOLVER.CHECKPOINT_PERIOD = iterations // 10
    clustering = fitted.MODEL.ROUTING.CLUSTERING
    clustering.NUM_EXPERTS = min(clustering.NUM_EXPERTS, len(dicts))
    fitted.MODEL.ROUTING.COST_SIZES = [crop]
    logger.info(
        "%d images, usually of %d×%d pixels, %d classes: %d iterations of %d crops of %d×%d",
        len(dicts),
        height,
        width,
        len(classes),
        iterations,
        batch,
        *crop,
    )
    return fitted


def _usual_size(files: Sequence[str]) -> tuple[int, int]:
    """Medians of rows and columns, of images spread over the data set."""
    chosen = files[:: max(1, len(files) // _SAMPLE)]
    sizes = [image_size(file) for file in chosen]
    rows, columns = [rows for rows, _, _ in sizes], [columns for _, columns, _ in sizes]
    return int(statistics.median(rows)), int(statistics.median(columns))
