"""Gives the classes to a Hydra's branches when its training starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..data import classification_batches, describe
from ..modeling import ImageClassifier, unwrap
from ..modeling.classifiers import choose_partition, hydra_of
from .agreement import together

logger = logging.getLogger(__name__)


class PartitionHook(HookBase):
    """Sets the class partition before the first step, unless a checkpoint brought one.

    Other models are left alone.

    Args:
        cfg: the whole configuration.
        model: what is trained.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg = cfg
        self.model = unwrap(model)

    def before_train(self) -> None:
        """Choose on one process, and set on all.

        Raises:
            DivdrError: the partition cannot be made; the message says why.
        """
        model, network = self.model, hydra_of(self.model)
        if not isinstance(model, ImageClassifier) or network is None or network.has_partition:
            return

        def find() -> Tensor | None:
            return find_partition(self.cfg, model) if comm.is_main_process() else None

        found = together(find)
        network.set_partition(comm.all_gather(found)[0])
        logger.info("Branches of the classes: %s", network.partition.tolist())


def find_partition(cfg: CfgNode, model: ImageClassifier) -> Tensor:
    """(C,) branch of every class, as ``cfg.MODEL.CLASSIFIER.HYDRA`` says.

    Args:
        cfg: the whole configuration.
        model: whose normalisation embedders see.

    Raises:
        DivdrError: the partition cannot be made; the message says why.
    """
    names = list(cfg.DATASETS.TRAIN)
    if cfg.MODEL.CLASSIFIER.HYDRA.PARTITION == "coarse":
        DatasetCatalog.get(names[0])  # published super-classes are known once the files are read
    classes, coarse = describe(names)
    return choose_partition(cfg, classes, coarse, lambda: normalised_batches(cfg, model, names))


def normalised_batches(
    cfg: CfgNode, model: ImageClassifier, names: list[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of every image once, as the model's system sees them, on its device."""
    for images, labels in classification_batches(cfg, names):
        yield model.normalise(images), labels.to(model.device)
