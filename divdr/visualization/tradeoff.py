"""Pictures of accuracy against cost, of sweeps over a setting, and of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..benchmark import Line
from ..engine.mixture_curve import MixturePoint
from .parts import LINE, colour, label_axes, marker


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
    """Draw each run as a dot, each group's mean as a marker, and the front of three means or more.

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
    if len(front) >= LINE:
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
        shade = colour(number)
        axis.plot(points[:, 0], points[:, 1], ".", color=shade, alpha=0.5, markersize=6)
        mean = points.mean(axis=0)
        axis.plot(
            *mean, marker(number), color=shade, markersize=8, label=name, markeredgecolor="#ffffff"
        )
    label_axes(axis, cost_label, value_label)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def draw_mixture_curve(
    path: str | Path,
    points: Sequence[MixturePoint],
    others: Mapping[str, MixturePoint],
) -> None:
    """Save a mixture's accuracy against its cost, a curve for each rule of the early exit that has
    three points or more.

    Args:
        path: the picture to write; its ending tells the format.
        points: of the curves.
        others: by name, models that run in one way, such as the finished one; at least one.
    """
    measures = list(next(iter(others.values())).accuracy)
    figure = Figure(figsize=(6.4 * len(measures), 4.4), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for measure, axis in zip(measures, panels, strict=True):
        rules = list(dict.fromkeys(point.exit for point in points))
        for number, rule in enumerate(rules):
            own = [(p.gflops, p.accuracy[measure]) for p in points if p.exit == rule]
            costs, values = zip(*sorted(own), strict=True)
            style = {"color": colour(number), "markersize": 5, "label": f"mixture, exit {rule}"}
            line = "-" if len(own) >= LINE else ""
            axis.plot(costs, values, marker(number) + line, **style)
        for number, (name, point) in enumerate(others.items(), len(rules)):
            place = point.gflops, point.accuracy[measure]
            axis.plot(*place, "*", color=colour(number), markersize=13, label=name)
        label_axes(axis, "GFLOPs an image (10⁹ multiply-adds)", f"{measure}, per cent")
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def draw_benchmark(path: str | Path, lines: Sequence[Line], title: str) -> None:
    """Save points, fitted lines and, in the legends, what their slopes and intercepts say.

    Args:
        path: the picture to write; its ending tells the format.
        lines: times of execution modes, at any number of batch sizes, at least one.
        title: above everything, such as the machine.
    """
    batches = sorted({line.batch for line in lines})
    modes = list(dict.fromkeys(line.mode for line in lines))
    figure = Figure(figsize=(7.2 * len(batches), 5.4), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        for line in lines:
            if line.batch == batch:
                _draw(axes, line, modes.index(line.mode))
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
    shade = colour(number)
    label = line.mode
    if line.fit is not None:
        slope, intercept = line.fit
        rate = "flat" if line.rate is None else f"{line.rate:.0f} GFLOPs/s"
        label = f"{line.mode}: {rate}, {intercept:+.0f} ms"
        ends = np.array([0.0, max(line.gflops)])
        axes.plot(ends, slope * ends + intercept, color=shade, linewidth=1.2)
    axes.plot(line.gflops, line.milliseconds, marker(number), color=shade, label=label)


@dataclass(frozen=True)
class SweepPanel:
    """One metric of a sweep.

    Attributes:
        label: of the vertical axis.
        values: for each setting the values of its seeds.
        reference: values of what is compared with, drawn as a level; () for none.
    """

    label: str
    values: Sequence[Sequence[float]]
    reference: Sequence[float] = ()


def sweep_figure(
    panels: Sequence[SweepPanel],
    settings: Sequence[object],
    name: str,
    *,
    log: bool = False,
    reference: str = "",
) -> Figure:
    """Draw a panel for each metric: mean and standard deviation at each setting, seeds as dots.

    Numbers make an axis, with a line through three or more; other settings (and truth values) stand
    side by side.

    Args:
        panels: metrics.
        settings: one for each entry of a panel's values, in the order to draw.
        name: of the setting.
        log: whether the axis is logarithmic; 0 among the settings keeps a place of its own.
        reference: name of the level.

    Raises:
        ValueError: no panel, no setting, or a panel of another length.
    """
    if not panels or not settings:
        raise ValueError("a sweep needs at least one metric and one setting")
    for panel in panels:
        if len(panel.values) != len(settings):
            raise ValueError(f"{len(settings)} settings, but {len(panel.values)} of {panel.label}")
    places, ordered = _places(settings)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        if panel.reference:
            mean, std = _mean_std(panel.reference)
            axis.axhline(mean, color="#777777", linewidth=1.2, gid="reference", label=reference)
            axis.axhspan(mean - std, mean + std, color="#777777", alpha=0.15, linewidth=0)
        shown = [(p, v) for p, v in zip(places, panel.values, strict=True) if len(v)]
        means, stds = np.array([_mean_std(v) for _, v in shown]).reshape(-1, 2).T
        axis.errorbar(
            [p for p, _ in shown],
            means,
            yerr=stds,
            fmt="o-" if ordered and len(shown) >= LINE else "o",
            color=colour(0),
            capsize=3,
            linewidth=1.5,
            markersize=5,
        )
        for place, seeds in shown:
            axis.plot([place] * len(seeds), seeds, ".", color=colour(0), alpha=0.45, markersize=5)
        if ordered and log:
            if min(places) > 0:
                axis.set_xscale("log")
            else:
                axis.set_xscale("symlog", linthresh=min((p for p in places if p > 0), default=1.0))
        axis.set_xticks(places, [_text(s) for s in settings])
        axis.minorticks_off()
        axis.margins(x=0.08 if ordered else 0.3)
        label_axes(axis, name, panel.label)
        if panel.reference:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _places(settings: Sequence[object]) -> tuple[list[float], bool]:
    numbers = [s for s in settings if isinstance(s, (int, float)) and not isinstance(s, bool)]
    if len(numbers) == len(settings) and len(set(numbers)) == len(numbers):
        return [float(n) for n in numbers], True
    return [float(i) for i in range(len(settings))], False


def _text(setting: object) -> str:
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
