"""Curves of a trained system: over thresholds, and along the line between two branches' weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from .expert_dispatch import run_groups
from .hydra import Hydra
from .system import Cost, Prediction, Thresholds


class LinePoint(NamedTuple):
    """At one place of the line.

    Attributes:
        share: α, 0 at the first branch and 1 at the second.
        loss: mean cross-entropy.
        accuracy: top-1, in per cent.
    """

    share: float
    loss: float
    accuracy: float


def between(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """A copy of ``first`` whose weights are (1 − α) of its own and α of ``second``'s.

    BatchNorm's running statistics are mixed as the weights are; counters stay those of ``first``.
    """
    mixed = copy.deepcopy(first)
    theirs = second.state_dict()
    with torch.no_grad():
        for name, value in mixed.state_dict().items():
            if value.is_floating_point():
                value.lerp_(theirs[name], share)
    return mixed


@torch.no_grad()
def loss_between(
    network: Hydra,
    first: int,
    second: int,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    steps: int = 11,
) -> list[LinePoint]:
    """Evaluate with one branch alone, mixed of two, on the images of those two's classes.

    Args:
        network: trained; its mode is restored.
        first: a branch.
        second: another one.
        batches: makes (images, labels) of every image once.
        steps: places on the line, both ends included.

    Raises:
        ConfigError: there are no such branches.
        DataError: no image belongs to them.
    """
    count = len(network.branches)
    if not (0 <= first < count and 0 <= second < count) or first == second or steps < 2:
        raise ConfigError(f"name two of the branches 0 to {count - 1}, and 2 steps at least")
    training = network.training
    network.eval()
    try:
        shares = torch.linspace(0, 1, steps).tolist()
        return [_point(network, first, second, share, batches()) for share in shares]
    finally:
        network.train(training)


def _point(
    network: Hydra,
    first: int,
    second: int,
    share: float,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> LinePoint:
    branch = between(network.branches[first], network.branches[second], share)
    images = right = 0
    loss = 0.0
    for inputs, labels in batches:
        owner = network.partition[labels]
        keep = (owner == first) | (owner == second)
        inputs, labels = inputs[keep], labels[keep]
        if not len(inputs):
            continue
        chosen = torch.ones((len(inputs), 1), dtype=torch.bool, device=inputs.device)
        groups = list(run_groups([branch], network.stem(inputs), chosen))
        logits = network.combine(groups, len(inputs))
        images += len(inputs)
        right += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    if not images:
        raise DataError(f"no image belongs to the classes of branches {first} and {second}")
    return LinePoint(share, loss / images, 100 * right / images)


class CurvePoint(NamedTuple):
    """At one threshold.

    Attributes:
        threshold: τ.
        mean_branches: λ, mean number of branches or experts that ran.
        accuracy: top-1, in per cent.
        macs: mean multiply-adds per image.
        loaded: mean numbers of parameters that an image's network consists of; None where the
            system does not tell.
    """

    threshold: float
    mean_branches: float
    accuracy: float
    macs: float
    loaded: float | None


@torch.no_grad()
def threshold_curve(
    network: nn.Module,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    thresholds: Sequence[float],
) -> list[CurvePoint]:
    """Evaluate at every τ, without training anew; the network's own τ and mode are restored.

    All images are read once, whatever the number of thresholds.

    Args:
        network: trained, a ``ClassificationSystem`` with a threshold.
        batches: makes (images, labels) of every image once.
        thresholds: values of τ.

    Raises:
        ConfigError: it has no threshold, or a τ is not within 0 and 1.
        DataError: there are no images.
    """
    if not isinstance(network, Thresholds):
        raise ConfigError(f"{type(network).__name__} has no threshold")
    for threshold in thresholds:
        network.check_threshold(threshold)
    system: Any = network
    training = network.training
    network.eval()
    try:
        totals = [_Totals(threshold) for threshold in thresholds]
        loads = system.loads() if hasattr(system, "loads") else None
        costs: dict[tuple[int, int], Cost] = {}
        for inputs, labels in batches():
            size = (inputs.shape[-2], inputs.shape[-1])
            if size not in costs:
                costs[size] = system.cost(*size)
            predictions = at_thresholds(network, inputs, thresholds)
            for total, prediction in zip(totals, predictions, strict=True):
                total.add(prediction, labels, costs[size], loads)
        return [total.point() for total in totals]
    finally:
        network.train(training)


def at_thresholds(
    network: nn.Module, inputs: Tensor, thresholds: Sequence[float]
) -> list[Prediction]:
    """What a system says of a batch at every τ; its own τ is restored.

    A system that has a method of this name runs what is common to them once.

    Args:
        network: a ``ClassificationSystem`` with a threshold, in evaluation.
        inputs: the batch.
        thresholds: values of τ.
    """
    system: Any = network
    if hasattr(system, "at_thresholds"):
        return system.at_thresholds(inputs, thresholds)
    before, predictions = system.threshold, []
    try:
        for threshold in thresholds:
            system.threshold = threshold
            predictions.append(system(inputs))
    finally:
        system.threshold = before
    return predictions


class _Totals:
    """Sums over the images at one threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.images = self.right = self.branches = 0
        self.macs = self.loaded = 0.0
        self.tells_loads = False

    def add(self, prediction: Prediction, labels: Tensor, cost: Cost, loads: Cost | None) -> None:
        self.images += len(labels)
        self.right += int((prediction.logits.argmax(1) == labels).sum())
        self.branches += int(prediction.ran.sum())
        self.macs += float(cost.of(prediction.ran).sum())
        if loads is not None:
            self.tells_loads = True
            self.loaded += float(loads.of(prediction.ran).sum())

    def point(self) -> CurvePoint:
        count = self.images
        if not count:
            raise DataError("there are no images to evaluate on")
        loaded = self.loaded / count if self.tells_loads else None
        return CurvePoint(
            self.threshold,
            self.branches / count,
            100 * self.right / count,
            self.macs / count,
            loaded,
        )
