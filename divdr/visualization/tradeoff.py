"""Accuracy against cost over runs, with the Pareto front (DivDR, Figure 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .parts import MARKERS, colour


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Points that no other one beats: none costs at most as much and is worth at least as much,
    one of the two strictly.

    Args:
        costs: N, less is better.
        values: N, more is better.

    Returns:
        Their numbers by ascending cost; of equal points all.

    Raises:
        ValueError: the lengths differ.
    """
    if len(costs) != len(values):
        raise ValueError(f"{len(costs)} costs and {len(values)} values do not fit")
    cost, value = np.asarray(costs, dtype=float), np.asarray(values, dtype=float)
    front = []
    for i in np.argsort(cost, kind="stable"):
        no_worse = (cost <= cost[i]) & (value >= value[i])
        better = (cost < cost[i]) | (value > value[i])
        if not (no_worse & better).any():
            front.append(int(i))
    return front


def tradeoff_figure(
    groups: Mapping[str, Sequence[tuple[float, float]]], cost_label: str, value_label: str
) -> Figure:
    """Draw each run as a dot, each group's mean as a marker, and the front of the means.

    Args:
        groups: for each name (cost, value) of its runs.
        cost_label: of the horizontal axis.
        value_label: of the vertical axis.

    Raises:
        ValueError: there is no run.
    """
    shown = {name: np.asarray(runs, dtype=float) for name, runs in groups.items() if len(runs)}
    if not shown:
        raise ValueError("no run to draw")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    means = np.array([points.mean(axis=0) for points in shown.values()])
    front = means[pareto_front(means[:, 0].tolist(), means[:, 1].tolist())]
    axis.plot(
        front[:, 0],
        front[:, 1],
        color="#999999",
        linewidth=1.2,
        linestyle="--",
        label="Pareto front of the means",
        gid="front",
    )
    for number, (name, points) in enumerate(shown.items()):
        shade, marker = colour(number), MARKERS[number % len(MARKERS)]
        axis.plot(points[:, 0], points[:, 1], ".", color=shade, alpha=0.5, markersize=6)
        mean = points.mean(axis=0)
        axis.plot(*mean, marker, color=shade, markersize=8, label=name, markeredgecolor="#ffffff")
    axis.set_xlabel(cost_label, fontsize=9)
    axis.set_ylabel(value_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#eeeeee")
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
