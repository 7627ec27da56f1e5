"""Accuracy against cost over runs, with the Pareto front (DivDR, Figure 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from divdr.benchmark import Line

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


def draw_benchmark(path: str | Path, lines: Sequence[Line], title: str) -> None:
    """Save points, fitted lines and, in the legends, what their slopes and intercepts say.

    Args:
        path: the picture to write; its ending tells the format.
        lines: times of ways of running, at any number of batch sizes, at least one.
        title: above everything, such as the machine.
    """
    batches = sorted({line.batch for line in lines})
    ways = list(dict.fromkeys(line.way for line in lines))
    figure = Figure(figsize=(7.2 * len(batches), 5.4), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        for line in lines:
            if line.batch == batch:
                _draw(axes, line, ways.index(line.way))
        axes.set_title(f"batch {batch}")
        axes.set_xlabel("real cost per image, GFLOPs (10⁹ multiply-adds)")
        axes.set_ylabel("time per image, ms")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", title="slope and time at no cost")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, line: Line, number: int) -> None:
    shade, marker = colour(number), MARKERS[number % len(MARKERS)]
    label = line.way
    if line.fit is not None:
        slope, intercept = line.fit
        rate = "flat" if line.rate is None else f"{line.rate:.0f} GFLOPs/s"
        label = f"{line.way}: {rate}, {intercept:+.0f} ms"
        ends = np.array([0.0, max(line.gflops)])
        axes.plot(ends, slope * ends + intercept, color=shade, linewidth=1.2)
    axes.plot(line.gflops, line.milliseconds, marker, color=shade, label=label)
