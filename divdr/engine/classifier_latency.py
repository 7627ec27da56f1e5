"""Milliseconds per image of a trained classifier: what was chosen by groups, or everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..moe import Collaboration, Dispatch, Hydra, Prediction, run_all, run_groups
from .classifier_analysis import trained_classifier
from .timing import time_in_turns

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
        seconds = time_in_turns(_ways(system), inputs, rounds)
    finally:
        system.train(training)
    images = size * len(inputs)
    milliseconds = {
        name: 1e3 * float(np.median(np.reshape(times, (-1, rounds)), axis=1).mean()) / size
        for name, times in seconds.items()
    }
    return Latency(size, images, ran / images, milliseconds)


def _ways(system: nn.Module) -> dict[str, Callable[[Tensor], Prediction]]:
    if not isinstance(system, (Hydra, Collaboration)):
        return {"all": system}
    return {name: partial(_run, system, dispatch) for name, dispatch in DISPATCH.items()}


def _run(system: Hydra | Collaboration, dispatch: Dispatch, x: Tensor) -> Prediction:
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
