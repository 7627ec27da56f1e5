"""A trained classifier looked at: thresholds, lines between branches, class partitions, latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from ..data import check_datasets, describe
from ..errors import ConfigError, DataError
from ..modeling import ImageClassifier
from ..modeling.classifiers import hydra_of
from ..moe import (
    Dispatch,
    Embedder,
    Ensemble,
    Hydra,
    Prediction,
    Thresholds,
    class_means,
    cluster_partition,
    loss_between,
    run_all,
    run_groups,
    save_partition,
    threshold_curve,
)
from .execution_modes import load_trained, time_in_turns
from .partition_hook import normalised_batches, partition_by_detector

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def curve_table(cfg: CfgNode, thresholds: Sequence[float]) -> str:
    """Mean branches, accuracy and cost on ``DATASETS.TEST`` at every τ, as a table.

    "M loaded" are 10⁶ parameters that ran for an image, and so had to be loaded for it.

    Of a Hydra it is the gater's τ (Table 6), of others that of their early exit.

    Raises:
        DivdrError: no trained model with a threshold, or a τ out of range.
    """
    model, batches = trained_classifier(cfg)
    if not isinstance(model.system, Thresholds):
        raise ConfigError(
            f"the model has no threshold: MODEL.CLASSIFIER.NAME is {cfg.MODEL.CLASSIFIER.NAME}"
        )
    rows = [
        (
            f"{p.threshold:g}",
            p.mean_branches,
            p.accuracy,
            p.macs / 1e6,
            None if p.loaded is None else p.loaded / 1e6,
        )
        for p in threshold_curve(model.system, batches, thresholds)
    ]
    headers = ("τ", "mean branches", "top-1", "MFLOPs", "M loaded")
    return tabulate(rows, headers=headers, floatfmt=".3f", missingval="-")


def selection_table(cfg: CfgNode) -> str:
    """Which expert is chosen for which class of ``DATASETS.TEST``, as a table.

    A row a class: per cent of its images for which each expert or branch ran, and for which none
    did (Collaboration of Experts, Figures 7 and 8).

    Raises:
        DivdrError: no trained classifier.
    """
    model, batches = trained_classifier(cfg)
    classes = describe(list(cfg.DATASETS.TEST)).classes
    shares = selection_shares(model.system, batches(), len(classes))
    rows = [(name, *share) for name, share in zip(classes, shares.tolist(), strict=True)]
    experts = [f"expert {number}" for number in range(shares.shape[1] - 1)]
    return tabulate(rows, headers=("class", *experts, "none"), floatfmt=".1f")


@torch.no_grad()
def selection_shares(
    system: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int
) -> Tensor:
    """(C, E + 1) per cent of each class's images for which each expert ran, and none did last.

    A class without an image has NaN.

    Args:
        system: a ``ClassificationSystem``; its mode is restored.
        batches: (images, labels) of every image once.
        classes: C.

    Raises:
        DataError: there are no images.
    """
    training = system.training
    system.eval()
    counts, images = None, torch.zeros(classes, 1, dtype=torch.float64)
    try:
        for x, labels in batches:
            ran, labels = system(x).ran.cpu(), labels.cpu()
            seen = torch.cat([ran, ~ran.any(1, keepdim=True)], dim=1).double()
            if counts is None:
                counts = seen.new_zeros((classes, seen.shape[1]))
            counts.index_add_(0, labels, seen)
            images[:, 0] += labels.bincount(minlength=classes)
    finally:
        system.train(training)
    if counts is None:
        raise DataError("there are no images to evaluate on")
    return 100 * counts / images


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


DISPATCH: dict[str, Dispatch] = {"groups": run_groups, "all": run_all}


class Latency(NamedTuple):
    """For batches of one size.

    Attributes:
        size: images a batch.
        images: how many were seen.
        mean_branches: mean number of branches or experts that an image chose.
        milliseconds: per image, by the names of ``DISPATCH``: each batch's median, and their mean,
            as batches differ in what runs. Of a system whose networks always run, "all" alone.
    """

    size: int
    images: int
    mean_branches: float
    milliseconds: dict[str, float]


def latency_table(cfg: CfgNode, sizes: Sequence[int], batches: int, rounds: int) -> str:
    """Times on the first images of ``DATASETS.TEST``, as a table.

    Args:
        cfg: of the trained model.
        sizes: of the batches.
        batches: how many of each size, if there are so many images.
        rounds: how often each batch is timed.

    Raises:
        DivdrError: no trained classifier, a number below 1, or fewer images than a batch holds.
    """
    if min(*sizes, batches, rounds) < 1:
        raise ConfigError("sizes, batches and rounds must be at least 1")
    model, images = trained_classifier(cfg)
    found = _first(images(), max(sizes) * batches)
    rows = [measure_latency(model.system, _cut(found, size, batches), rounds) for size in sizes]
    names = list(rows[0].milliseconds)
    return tabulate(
        [(r.size, r.images, r.mean_branches, *(r.milliseconds[n] for n in names)) for r in rows],
        headers=("batch", "images", "mean branches", *(f"ms per image, {n}" for n in names)),
        floatfmt=("", "", ".3f", *(".4f" for _ in names)),
    )


@torch.no_grad()
def measure_latency(system: nn.Module, inputs: Sequence[Tensor], rounds: int) -> Latency:
    """Run every batch by each dispatch in turns; the system's own dispatch and mode are restored.

    Args:
        system: a ``ClassificationSystem``.
        inputs: batches of one size, where the system is.
        rounds: how often each.
    """
    size, training = len(inputs[0]), system.training
    system.eval()
    try:
        ran = sum(int(system(x).ran.sum()) for x in inputs)
        seconds = time_in_turns(_modes(system), inputs, rounds)
    finally:
        system.train(training)
    images = size * len(inputs)
    milliseconds = {
        name: 1e3 * float(np.median(np.reshape(times, (-1, rounds)), axis=1).mean()) / size
        for name, times in seconds.items()
    }
    return Latency(size, images, ran / images, milliseconds)


def _modes(system: nn.Module) -> dict[str, Callable[[Tensor], Prediction]]:
    if not hasattr(system, "dispatch"):
        return {"all": system}
    return {name: partial(_run, system, dispatch) for name, dispatch in DISPATCH.items()}


def _run(system: Any, dispatch: Dispatch, x: Tensor) -> Prediction:
    before = system.dispatch
    system.dispatch = dispatch
    try:
        return system(x)
    finally:
        system.dispatch = before


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """At most ``count`` images, without reading more than that."""
    parts, have = [], 0
    for images, _ in batches:
        parts.append(images[: count - have])
        have += len(parts[-1])
        if have == count:
            break
    return torch.cat(parts) if parts else torch.zeros(0)


def _cut(images: Tensor, size: int, batches: int) -> list[Tensor]:
    if len(images) < size:
        raise DataError(f"DATASETS.TEST has {len(images)} images, fewer than a batch of {size}")
    return [part for part in images.split(size)[:batches] if len(part) == size]
