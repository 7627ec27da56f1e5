"""Class weights of segmentation from the training set's labels, the same on all processes."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from ..config import SEVERAL_TASKS
from ..data import ClassFrequencies, count_classes
from ..errors import ConfigError
from ..modeling import SegmentationLoss
from .setup import together

logger = logging.getLogger(__name__)


def balance_classes(cfg: CfgNode, model: nn.Module) -> None:
    """Give a model's segmentation losses the class weights that ``LOSS.BALANCE`` asks for.

    The main process reads the labels, and keeps what it counted in ``OUTPUT_DIR``. All processes
    must call this.

    Args:
        cfg: the whole configuration.
        model: built from it.

    Raises:
        ConfigError: there are several tasks, whose data sets have classes of their own.
        DataError: see ``divdr.data.count_classes``.
    """
    losses = [m for m in model.modules() if isinstance(m, SegmentationLoss) and m.settings.balance]
    if not losses:
        return
    if cfg.MODEL.META_ARCHITECTURE == SEVERAL_TASKS:
        raise ConfigError(
            f"{losses[0].settings.KEY}.BALANCE counts the classes of one task; {SEVERAL_TASKS} has "
            "several: give CLASS_WEIGHTS"
        )
    found = comm.all_gather(together(_counted, cfg))[0]
    for loss in losses:
        loss.set_class_weights(found.weights(loss.settings.balance))
    weights = found.weights(losses[0].settings.balance)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("stuff_classes", None)
    names = names or [str(number) for number in range(len(weights))]
    told = (f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=False))
    logger.info("Class weights: %s", ", ".join(told))


def _counted(cfg: CfgNode) -> ClassFrequencies | None:
    return count_classes(cfg, cfg.OUTPUT_DIR) if comm.is_main_process() else None
