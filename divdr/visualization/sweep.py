"""Metrics against a setting, with the spread over seeds (DivDR, Figures 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from .parts import colour


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

    Numbers make an axis with a line; other settings (and truth values) stand side by side.

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
            fmt="o-" if ordered else "o",
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
        axis.set_xlabel(name, fontsize=9)
        axis.set_ylabel(panel.label, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(color="#eeeeee")
        axis.set_axisbelow(True)
        axis.margins(x=0.08 if ordered else 0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
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
