"""Classes for the branches of Hydras, as training starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..data import annotated_images, classification_batches, describe, supercategories
from ..errors import ConfigError, DataError
from ..modeling import ImageClassifier, unwrap
from ..modeling.classifiers import choose_partition, hydra_of
from ..modeling.partition_source import PartitionSource
from ..modeling.roi_heads import box_embeddings, choose_box_partition, hydra_box_head_of
from ..moe import class_sums, cluster_partition, save_partition
from .setup import together

logger = logging.getLogger(__name__)


class _ModelHook(HookBase):
    """What the hooks of class partitions know.

    Args:
        cfg: the whole configuration.
        model: what is trained.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg = cfg
        self.model = unwrap(model)


class PartitionHook(_ModelHook):
    """Sets the class partition before the first step, unless a checkpoint brought one.

    Other models are left alone.

    Args:
        cfg: the whole configuration.
        model: what is trained.
    """

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


class BoxPartitionHook(_ModelHook):
    """Sets the class partition before the first step, unless a checkpoint brought one.

    One that a checkpoint brought must be of the training set's classes. Models without a Hydra box
    head are left alone.

    Args:
        cfg: the whole configuration.
        model: what is trained.
    """

    def before_train(self) -> None:
        """Choose, the same on all processes, and set.

        Raises:
            DivdrError: the partition cannot be made, or is of other classes; the message says why.
        """
        head = hydra_box_head_of(self.model)
        if head is None:
            return
        classes = thing_classes(self.cfg)
        if head.classes.known:
            head.classes.check(classes)
            return
        source = PartitionSource(
            classes,
            lambda: supercategories(self.cfg.DATASETS.TRAIN[0]),
            lambda: roi_class_means(self.cfg, self.model, classes),
            seed=max(0, self.cfg.SEED),
        )
        partition = comm.all_gather(choose_box_partition(self.cfg, source))[0]
        head.classes.set(partition, classes)
        logger.info("Branches of the classes: %s", partition.tolist())


def thing_classes(cfg: CfgNode) -> list[str]:
    """Names of the classes of the first training set, which has been loaded.

    Raises:
        ConfigError: the model has another number of classes.
    """
    name, count = cfg.DATASETS.TRAIN[0], cfg.MODEL.ROI_HEADS.NUM_CLASSES
    classes = list(MetadataCatalog.get(name).get("thing_classes") or map(str, range(count)))
    if len(classes) != count:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {count}, but data set {name!r} has {len(classes)} "
            "classes"
        )
    return classes


def roi_class_means(cfg: CfgNode, model: nn.Module, classes: Sequence[str]) -> Tensor:
    """(C, D) mean features of every class's boxes in the training set, by the model's box head.

    Every process embeds its share of the images.

    Args:
        cfg: the whole configuration.
        model: a detector with one box head; its mode is restored.
        classes: names of the classes.

    Raises:
        DataError: a class has no box.
        ConfigError: the model has no single box head.
    """
    gathered = comm.all_gather(together(_own_sums, cfg, model, len(classes)))
    counts = torch.stack([part[1] for part in gathered]).sum(0)
    missing = (counts == 0).nonzero()[:, 0].tolist()
    if missing:
        raise DataError(
            f"class {classes[missing[0]]!r} has no box in the training set, so that it cannot be "
            "clustered; a partition by chance, super-categories or a file needs none"
        )
    sums = torch.stack([part[0] for part in gathered if part[0] is not None]).sum(0)
    return sums / counts[:, None]


def _own_sums(cfg: CfgNode, model: nn.Module, classes: int) -> tuple:
    """Sums of features and numbers of boxes of each class, in this process's images."""
    images = annotated_images(cfg, comm.get_rank(), comm.get_world_size())
    training = model.training
    model.eval()
    try:
        return class_sums(torch.nn.Identity(), box_embeddings(model, images), classes)
    finally:
        model.train(training)


def partition_by_detector(cfg: CfgNode, model: nn.Module, branches: int, path: str) -> Tensor:
    """Algorithm 2 on the boxes of ``DATASETS.TRAIN`` with a trained detector, to a file.

    Args:
        cfg: of the trained model.
        model: that model.
        branches: nb.
        path: of the file.

    Returns:
        (C,) branch of every class.

    Raises:
        DivdrError: a class has no box, or there are more branches than classes.
    """
    next(annotated_images(cfg))  # names of classes are known once the files are read
    classes = thing_classes(cfg)
    means = roi_class_means(cfg, model, classes)
    partition = cluster_partition(means, branches, seed=max(0, cfg.SEED))
    save_partition(path, cfg.DATASETS.TRAIN[0], classes, partition)
    return partition
