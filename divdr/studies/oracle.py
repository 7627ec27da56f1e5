"""What choosing by image could reach at most: an oracle over static networks of several costs.

It knows how good each network is on each image, and gives every image to one of them so that the
mean cost stays within a budget. What it reaches by the very scores that it is judged by is an upper
bound with luck in it: of two equal networks one is better on every image. What it reaches by the
scores of other runs is what images themselves say of their need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ..errors import DataError
from .by_image import ious_by_image
from .statistics import NOTHING, first_routes

_STEPS = 60  # halvings of the price of cost: far below any difference of scores


@dataclass(frozen=True)
class Scores:
    """S networks on N images.

    Attributes:
        accuracy: (S, N), more is better.
        gflops: (S, N) real cost, 10⁹ multiply-adds.
    """

    accuracy: np.ndarray
    gflops: np.ndarray


@dataclass(frozen=True)
class Bound:
    """What an oracle reaches within the mean cost of one of its networks.

    Attributes:
        budget: mean cost of that network, GFLOPs an image.
        alone: its own accuracy.
        own: the oracle's by the scores that it is judged by.
        transferred: by those of other runs; NaN with one run.
        gflops: mean cost of the transferred choices; of the own ones with one run.
    """

    budget: float
    alone: float
    own: float
    transferred: float
    gflops: float


def choose(scores: Scores, budget: float) -> np.ndarray:
    """The network of each image by which mean accuracy is best and mean cost within a budget.

    A price is put on cost and each image takes what is worth most; the price is the lowest that
    keeps the budget. No choice of at most the same cost is better.

    Args:
        scores: of the networks.
        budget: GFLOPs an image, on average.

    Returns:
        (N,) numbers of networks.

    Raises:
        ValueError: even the cheapest network of each image costs more.
    """
    images = np.arange(scores.accuracy.shape[1])

    def at(price: float) -> np.ndarray:
        worth = scores.accuracy - price * scores.gflops
        # Of equals the cheapest.
        cheap = np.lexsort((scores.gflops, -worth), axis=0)
        return cheap[0]

    def cost(choice: np.ndarray) -> float:
        return float(scores.gflops[choice, images].mean())

    least = scores.gflops.min(axis=0).mean()
    if least > budget * (1 + 1e-9):
        raise ValueError(f"the cheapest networks cost {least:g} GFLOPs an image, above {budget:g}")
    if cost(at(0.0)) <= budget:
        return at(0.0)
    low, high = 0.0, 1.0
    while cost(at(high)) > budget * (1 + 1e-9):
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) > budget else (low, middle)
    return at(high)


def bound(runs: Sequence[Scores], of: int) -> Bound:
    """What choosing by image reaches within the mean cost of one network, over runs.

    Args:
        runs: the same networks and images, trained with other seeds; at least one.
        of: number of the network.
    """
    images = np.arange(runs[0].accuracy.shape[1])
    budgets = [float(run.gflops[of].mean()) for run in runs]
    choices = [choose(run, budget) for run, budget in zip(runs, budgets, strict=True)]

    def judged(judge: int, chooser: int) -> tuple[float, float]:
        run, choice = runs[judge], choices[chooser]
        return run.accuracy[choice, images].mean(), run.gflops[choice, images].mean()

    own = np.mean([judged(i, i) for i in range(len(runs))], axis=0)
    others = [judged(i, j) for i in range(len(runs)) for j in range(len(runs)) if i != j]
    moved = np.mean(others, axis=0) if others else np.array([np.nan, own[1]])
    alone = np.mean([run.accuracy[of].mean() for run in runs])
    return Bound(float(np.mean(budgets)), float(alone), float(own[0]), moved[0], moved[1])


def read_scores(folders: Sequence[Path]) -> Scores:
    """IoU in per cent (``by_image.image_iou``) and cost of each test image in finished runs.

    Args:
        folders: of segmentation on drawn scenes with the same test images, a network each.

    Raises:
        DataError: the images are no drawn scenes, or a run has no routed backbone.
    """
    ious = [ious_by_image(folder) for folder in folders]
    names = sorted(name for name in ious[0] if all(np.isfinite(own[name]) for own in ious))
    costs = []
    for folder in folders:
        routes = first_routes(folder)
        if routes is None:
            raise DataError(f"{folder} has no routes of test images")
        own = dict(zip(routes.file_names, routes.real_cost / 1e9, strict=True))
        costs.append([own[name] for name in names])
    accuracy = 100.0 * np.array([[own[name] for name in names] for own in ious])
    return Scores(accuracy, np.array(costs))


def oracle_markdown(title: str, names: Sequence[str], runs: Mapping[int, Scores]) -> str:
    """A row for each network but the cheapest, within whose cost the oracle chooses.

    Args:
        title: of the study.
        names: of the networks.
        runs: by seed.
    """
    found = {name: bound(list(runs.values()), number) for number, name in enumerate(names)}
    cheapest = min(found, key=lambda name: found[name].budget)
    rows = [
        [
            name,
            f"{b.budget:.4f}",
            f"{b.alone:.2f}",
            f"{b.own:.2f}",
            NOTHING if np.isnan(b.transferred) else f"{b.transferred:.2f}",
            f"{b.gflops:.4f}",
        ]
        for name, b in found.items()
        if name != cheapest
    ]
    heads = [
        "within the cost of",
        "GFLOPs",
        "alone",
        "own scores",
        "others' scores",
        "their GFLOPs",
    ]
    table = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    seeds = ", ".join(map(str, runs))
    return (
        f"# {title}: choosing by image among {', '.join(names)}\n\nMean over images of an image's "
        f"IoU in per cent, seeds {seeds}. Networks are chosen by their own scores on the images "
        f"that they are judged by, or by those of the other seeds.\n\n{table}\n"
    )
