"""Accuracy against computation over a threshold τ that can be changed after training.

The gater's of DynK-Hydra (its Table 6), or that of early termination (Collaboration of Experts,
Figure 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from .collaboration import Collaboration
from .hydra import Hydra
from .prediction import Cost


class CurvePoint(NamedTuple):
    """At one threshold.

    Attributes:
        threshold: τ.
        mean_branches: λ, mean number of branches or experts that ran.
        accuracy: top-1, in per cent.
        macs: mean multiply-adds per image.
    """

    threshold: float
    mean_branches: float
    accuracy: float
    macs: float


@torch.no_grad()
def threshold_curve(
    network: Hydra | Collaboration,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    thresholds: Sequence[float],
) -> list[CurvePoint]:
    """Evaluate at every τ, without training anew; the network's own τ and mode are restored.

    Args:
        network: trained.
        batches: makes (images, labels) of every image once.
        thresholds: values of τ.

    Raises:
        ConfigError: a τ is not within 0 and 1.
        DataError: there are no images.
    """
    settings, training = network.settings, network.training
    before = settings.threshold
    for threshold in thresholds:
        network.check_threshold(threshold)
    network.eval()
    try:
        costs: dict[tuple[int, int], Cost] = {}
        return [_curve_point(network, batches(), threshold, costs) for threshold in thresholds]
    finally:
        settings.threshold = before
        network.train(training)


def _curve_point(
    network: Hydra | Collaboration,
    batches: Iterable[tuple[Tensor, Tensor]],
    threshold: float,
    costs: dict[tuple[int, int], Cost],
) -> CurvePoint:
    network.settings.threshold = threshold
    images = right = branches = 0
    macs = 0.0
    for inputs, labels in batches:
        prediction = network(inputs)
        images += len(inputs)
        right += int((prediction.logits.argmax(1) == labels).sum())
        branches += int(prediction.ran.sum())
        size = (inputs.shape[-2], inputs.shape[-1])
        if size not in costs:
            costs[size] = network.cost(*size)
        macs += float(costs[size].of(prediction.ran).sum())
    if not images:
        raise DataError("there are no images to evaluate on")
    return CurvePoint(threshold, branches / images, 100 * right / images, macs / images)
