"""Picture of what images cost and gain, by how much there is to see in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from .parts import colour, label_axes, marker


@dataclass(frozen=True)
class Need:
    """N images of one run.

    Attributes:
        objects: how many each shows.
        gflops: real cost of each, 10⁹ multiply-adds.
    """

    objects: Sequence[int]
    gflops: Sequence[float]


@dataclass(frozen=True)
class Gain:
    """How much better one network is than another on images with so many objects.

    Attributes:
        fewest: objects.
        most: objects.
        images: how many images.
        mean: mean difference, per cent.
        low: lower end of its interval.
        high: upper end.
    """

    fewest: int
    most: int
    images: int
    mean: float
    low: float
    high: float


def need_figure(needs: Mapping[str, Need], gains: Mapping[str, Sequence[Gain]]) -> Figure:
    """Draw each image's cost against its objects, and gains with their intervals.

    Args:
        needs: by the name of a run; the legend tells Spearman's correlation.
        gains: by the name of a comparison.

    Raises:
        ValueError: one of both is empty.
    """
    if not needs or not gains:
        raise ValueError("nothing to draw")
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, need) in enumerate(needs.items()):
        text = f"{name} ({_correlation(need)})"
        left.plot(need.objects, need.gflops, ".", color=colour(number), alpha=0.6, ms=5, label=text)
    left.set_ylim(0.0, 1.1 * max(max(need.gflops) for need in needs.values()))
    label_axes(left, "objects in the image", "real cost of the image [GFLOPs]")
    ticks = {(g.fewest, g.most): g.images for own in gains.values() for g in own}
    places = {part: place for place, part in enumerate(sorted(ticks))}
    width = 0.5 / len(gains)
    for number, (name, own) in enumerate(gains.items()):
        shift = (number - (len(gains) - 1) / 2) * width
        at = [places[g.fewest, g.most] + shift for g in own]
        means = np.array([g.mean for g in own])
        errors = [means - [g.low for g in own], [g.high for g in own] - means]
        style = {"color": colour(number), "marker": marker(number), "ms": 6}
        right.errorbar(at, means, errors, linestyle="", capsize=3, label=name, **style)
    right.axhline(0.0, color="#999999", linewidth=1.0)
    names = [f"{_span(*part)}\n(n = {ticks[part]})" for part in places]
    label_axes(right, "objects in the image", "gain in IoU of an image [%]")
    right.set_xticks(range(len(names)), names)
    for panel in (left, right):
        panel.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _correlation(need: Need) -> str:
    if len(set(need.gflops)) < 2:
        return "one cost"
    if len(set(need.objects)) < 2:
        return "as many objects in all"
    return f"ρ = {stats.spearmanr(need.objects, need.gflops).statistic:.2f}"


def _span(fewest: int, most: int) -> str:
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"
