"""Training curves from Detectron2's ``metrics.json``, several runs in one figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import DataError
from .parts import LINE, colour, label_axes, marker

#: A line, or a marker for numbers that come too rarely for one.
Style = Literal["-", "--", ":", "D", "s", "^"]
Metrics = dict[str, tuple[np.ndarray, np.ndarray]]
GFLOPS = {"expected": "train/expected_gflops", "real": "train/real_gflops"}
DIVERSITY = {
    "inter (experts)": "clustering/inter_experts",
    "intra (pairs, experts)": "clustering/intra_pairs_experts",
    "intra (to centre, experts)": "clustering/intra_centre_experts",
    "inter (refit)": "routing/inter_refit",
    "intra (pairs, refit)": "routing/intra_pairs_refit",
    "intra (to centre, refit)": "routing/intra_centre_refit",
}
_STYLES: tuple[Style, ...] = ("-", "--", ":", "D", "s", "^")
_MARKERS = ("D", "s", "^")


def read_metrics(path: str | Path) -> Metrics:
    """Read JSON lines, one object a line, each with its ``iteration``.

    A resumed run writes iterations again: the last value of each stays. Lines that are cut short
    or have no iteration, and values that are not numbers, are skipped.

    Returns:
        For each key its iterations (M,) int64, ascending, and values (M,) float64.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    series: dict[str, dict[int, float]] = {}
    for line in lines:
        record = _record(line)
        if record is None:
            continue
        for key, value in record.items():
            if key != "iteration" and _is_number(value):
                series.setdefault(key, {})[int(record["iteration"])] = float(value)
    metrics = {}
    for key, values in series.items():
        iterations = sorted(values)
        metrics[key] = (
            np.array(iterations, dtype=np.int64),
            np.array([values[i] for i in iterations], dtype=np.float64),
        )
    return metrics


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not _is_number(record.get("iteration")):
        return None
    return record if math.isfinite(record["iteration"]) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def loss_keys(runs: Mapping[str, Metrics]) -> list[str]:
    """Names of all losses in any run, the total first."""
    keys = {key for metrics in runs.values() for key in metrics if _is_loss(key)}
    return sorted(keys, key=lambda key: (key != "total_loss", key))


def _is_loss(key: str) -> bool:
    return key == "total_loss" or key.startswith("loss")


def losses_figure(runs: Mapping[str, Metrics]) -> Figure:
    """Draw a panel for every loss, a colour for every run.

    Raises:
        ValueError: no run has a loss.
    """
    keys = loss_keys(runs)
    if not keys:
        raise ValueError("no run has a loss to draw")
    columns = min(2, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 2.5 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axis, key in zip(axes, keys, strict=False):
        _draw(axis, runs, {key: key})
        axis.set_title(key, fontsize=10, loc="left")
        axis.tick_params(labelbottom=True)
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    _legend(figure, list(runs), {})
    return figure


def gflops_figure(runs: Mapping[str, Metrics]) -> Figure:
    """Draw expected cost (solid) and real cost (dashed).

    Raises:
        ValueError: no run has either.
    """
    return _one_panel(runs, GFLOPS, "GFLOPs an image")


def diversity_figure(runs: Mapping[str, Metrics]) -> Figure:
    """Draw distances between gate activations.

    Those of the experts over the training images are lines: inter solid, intra over pairs dashed,
    intra to the centre dotted. Those of a new K-means over the evaluated images are a diamond, a
    square and a triangle for each evaluation.

    Raises:
        ValueError: no run has any of them.
    """
    return _one_panel(runs, DIVERSITY, "distance between gate activations")


def progress_figure(
    groups: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], label: str
) -> Figure:
    """Draw how a number of evaluations changes in training: runs thin, the mean of a group thick.

    Args:
        groups: by name, for each of its runs iterations (M,) and values (M,); the mean is over
            those iterations that all of them have.
        label: of the vertical axis.

    Raises:
        ValueError: there is no run.
    """
    shown = {name: runs for name, runs in groups.items() if len(runs)}
    if not shown:
        raise ValueError("no run to draw")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for number, (name, runs) in enumerate(shown.items()):
        shade = colour(number)
        for iterations, values in runs:
            axis.plot(iterations, values, color=shade, alpha=0.35, linewidth=0.8)
        common = sorted(set.intersection(*(set(at.tolist()) for at, _ in runs)))
        means = [np.mean([v[at == i] for at, v in runs]) for i in common]
        form = marker(number) + "-"
        axis.plot(common, means, form, color=shade, linewidth=2, label=name, gid=name)
    label_axes(axis, "iteration", label)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _one_panel(runs: Mapping[str, Metrics], keys: Mapping[str, str], label: str) -> Figure:
    present = [name for name, key in keys.items() if any(key in m for m in runs.values())]
    if not present:
        raise ValueError(f"no run has {' or '.join(keys.values())}")
    figure = Figure(figsize=(7.0, 3.7), layout="constrained")
    axis = figure.subplots()
    _draw(axis, runs, keys)
    axis.set_ylabel(label, fontsize=9)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    styles = dict(zip(keys, _STYLES, strict=False))
    looks = {}
    for name in present:
        longest = max(len(m[keys[name]][0]) for m in runs.values() if keys[name] in m)
        looks[name] = _look(styles[name], few=longest < LINE)
    _legend(figure, list(runs), looks)
    return figure


def _draw(axis: Axes, runs: Mapping[str, Metrics], keys: Mapping[str, str]) -> None:
    for number, (run, metrics) in enumerate(runs.items()):
        for (name, key), style in zip(keys.items(), _STYLES, strict=False):
            if key not in metrics:
                continue
            iterations, values = metrics[key]
            axis.plot(
                iterations,
                values,
                color=colour(number),
                **_look(style, few=len(iterations) < LINE),
                gid=f"{run}:{name}",
            )
    label_axes(axis, "iteration")


def _look(style: Style, few: bool = False) -> dict[str, Any]:
    if style in _MARKERS:
        return {"linestyle": "none", "marker": style, "markersize": 6, "markerfacecolor": "none"}
    if few:
        marker = {"-": "o", "--": "x", ":": "v"}[style]
        return {"linestyle": "none", "marker": marker, "markersize": 5}
    return {"linestyle": style, "linewidth": 1.5}


def _legend(figure: Figure, runs: Sequence[str], looks: Mapping[str, dict[str, Any]]) -> None:
    handles = [
        Line2D([], [], color=colour(number), linewidth=3, label=run)
        for number, run in enumerate(runs)
    ]
    columns = 5
    if len(looks) > 3:  # long names: runs, lines and marks below each other, three a column
        handles += [Line2D([], [], linestyle="none", label=" ")] * (-len(runs) % 3)
        columns = math.ceil((len(handles) + len(looks)) / 3)
    handles += [Line2D([], [], color="#666666", label=name, **look) for name, look in looks.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), columns),
        fontsize=8.5,
        frameon=False,
    )
