"""What tools/analyse_classifier.py and tools/partition_classes.py do with a trained classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from ..data import check_datasets, describe
from ..errors import ConfigError
from ..modeling import ImageClassifier
from ..modeling.classifiers import collaboration_of, hydra_of
from ..moe import (
    Embedder,
    Ensemble,
    Hydra,
    class_means,
    cluster_partition,
    loss_between,
    save_partition,
    threshold_curve,
)
from .partition_hook import normalised_batches, partition_by_detector
from .trained import load_trained

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def curve_table(cfg: CfgNode, thresholds: Sequence[float]) -> str:
    """Mean branches, accuracy and cost on ``DATASETS.TEST`` at every τ, as a table.

    The gater's τ of a Hydra (Table 6), or that of early termination of a collaboration.

    Raises:
        DivdrError: no trained model of either kind, or a τ out of range.
    """
    model, batches = trained_classifier(cfg)
    network = hydra_of(model) or collaboration_of(model)
    if network is None:
        raise ConfigError(
            "the model has no threshold: MODEL.CLASSIFIER.NAME is neither build_hydra_classifier "
            "nor build_coe_classifier"
        )
    rows = [
        (f"{p.threshold:g}", p.mean_branches, p.accuracy, p.macs / 1e6)
        for p in threshold_curve(network, batches, thresholds)
    ]
    return tabulate(rows, headers=("τ", "mean branches", "top-1", "MFLOPs"), floatfmt=".3f")


def line_table(cfg: CfgNode, first: int, second: int, steps: int) -> str:
    """Loss and accuracy on the line between two branches (Figure 5), as a table.

    Raises:
        DivdrError: no trained Hydra, or no such branches.
    """
    network, batches = _trained_hydra(cfg)
    points = loss_between(network, first, second, batches, steps)
    return tabulate(points, headers=("α", "loss", "top-1"), floatfmt=".3f")


def partition_by_model(cfg: CfgNode, branches: int, path: str) -> Tensor:
    """Algorithm 2 on ``DATASETS.TRAIN`` with a trained model as embedder, to a file.

    A single network embeds images, a detector its training set's boxes.

    Args:
        cfg: of the trained model.
        branches: nb.
        path: of the file.

    Returns:
        (C,) branch of every class.

    Raises:
        DivdrError: the model is neither, a class has no sample, or there are more branches than
            classes.
    """
    check_datasets(cfg.DATASETS.TRAIN)
    model = load_trained(cfg)
    if isinstance(getattr(model, "roi_heads", None), nn.Module):
        return partition_by_detector(cfg, model, branches, path)
    if not isinstance(model, ImageClassifier) or not isinstance(model.system, Ensemble):
        raise ConfigError(
            "classes are embedded by a model of build_single_classifier or by a detector"
        )
    names = list(cfg.DATASETS.TRAIN)
    classes = describe(names).classes
    embedder = Embedder(model.system.members[0]).eval()
    means = class_means(embedder, normalised_batches(cfg, model, names), len(classes))
    partition = cluster_partition(means, branches, seed=max(0, cfg.SEED))
    save_partition(path, names[0], classes, partition)
    return partition


def _trained_hydra(cfg: CfgNode) -> tuple[Hydra, Batches]:
    model, batches = trained_classifier(cfg)
    network = hydra_of(model)
    if network is None:
        raise ConfigError(
            "the model has no branches: MODEL.CLASSIFIER.NAME is not build_hydra_classifier"
        )
    return network, batches


def trained_classifier(cfg: CfgNode) -> tuple[ImageClassifier, Batches]:
    """The model, and what makes normalised images and labels of ``DATASETS.TEST``.

    Raises:
        DivdrError: no trained model, or one that is no image classifier.
    """
    check_datasets(cfg.DATASETS.TEST)
    model = load_trained(cfg)
    if not isinstance(model, ImageClassifier):
        raise ConfigError('MODEL.META_ARCHITECTURE is not "ImageClassifier"')
    names = list(cfg.DATASETS.TEST)
    return model, lambda: normalised_batches(cfg, model, names)
