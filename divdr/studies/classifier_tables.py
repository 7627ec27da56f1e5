"""Tables and a picture of classification systems that were measured over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

from ..errors import DataError
from .statistics import paired_difference, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = Mapping[str, Mapping[str, float]]
"""Of one seed: figures by name ("bagging top-1", "bagging MFLOPs"), by system."""

Pair = tuple[tuple[str, str], tuple[str, str]]
"""Two systems with their answers, of which the second is compared with the first."""

PAIRS: tuple[Pair, ...] = (
    (("base", "base"), ("one expert", "bagging")),
    (("one expert", "bagging"), ("K = 5", "bagging")),
    (("K = 5", "bagging"), ("K = 10", "bagging")),
    (("K = 5, per class", "bagging"), ("K = 5", "bagging")),
    (("K = 5", "bagging"), ("K = 5, per class", "oracle")),
    (("K = 5", "none"), ("K = 5", "top2")),
    (("K = 5", "top2"), ("K = 5", "bagging")),
    (("K = 5", "stacking"), ("K = 5", "bagging")),
    (("wider", "system"), ("K = 5", "bagging")),
    (("wider", "system"), ("K = 10", "bagging")),
    (("larger", "system"), ("K = 10", "bagging")),
)


def table(seeds: Sequence[Figures], compared: Sequence[Pair] = PAIRS) -> str:
    """Means and deviations of every row but the curves', and paired differences, in Markdown.

    Args:
        seeds: figures of each seed.
        compared: pairs of systems; those that were not measured are left out.

    Raises:
        DataError: there are no figures.
    """
    if not seeds:
        raise DataError("there are no figures: no seed was measured")
    rows = []
    for system, figures in seeds[0].items():
        for key in figures:
            name = key.removesuffix(" top-1")
            if key == name or "-" in name:
                continue
            accuracy = summarise([seed[system][key] for seed in seeds])
            cost = np.mean([seed[system][f"{name} MFLOPs"] for seed in seeds])
            numbers = [seed[system]["parameters"] for seed in seeds if "parameters" in seed[system]]
            row = (system, name, f"{cost:.3f}", accuracy.text())
            rows.append((*row, f"{np.mean(numbers):,.0f}") if numbers else row)
    heads = ("system", "answer", "MFLOPs", "top-1 [%]", "parameters")
    text = tabulate(rows, heads[: max(map(len, rows))], tablefmt="github", disable_numparse=True)
    return text + "\n\n" + pairs_table(seeds, compared)


def mean_of(seeds: int) -> str:
    """What a picture says of how many seeds it shows."""
    return "one seed" if seeds == 1 else f"mean of {seeds} seeds"


def pairs_table(seeds: Sequence[Figures], compared: Sequence[Pair]) -> str:
    """Paired differences with 95 % intervals, in Markdown; pairs not measured are left out.

    Args:
        seeds: figures of each seed.
        compared: pairs of systems.
    """
    pairs = []
    for (first, a), (second, b) in compared:
        if not all(
            f"{a} top-1" in s.get(first, {}) and f"{b} top-1" in s.get(second, {}) for s in seeds
        ):
            continue
        found = paired_difference(
            [s[first][f"{a} top-1"] for s in seeds], [s[second][f"{b} top-1"] for s in seeds]
        )
        row = (f"{second} ({b}) − {first} ({a})", found.text(), found.interval(), found.n)
        pairs.append(row)
    columns = ("difference", "mean", "95 % interval", "seeds")
    return tabulate(pairs, columns, tablefmt="github", disable_numparse=True) + "\n"


def draw_curves(seeds: Sequence[Figures], path: Path) -> None:
    """Accuracy against multiply-adds over τ for every mixture, single networks as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for system, figures in seeds[0].items():
        for kind, style in (("anytime", "-"), ("confidence", "--")):
            names = [k.removesuffix(" top-1") for k in figures if k.startswith(f"{kind}-")]
            names = [name for name in names if not name.endswith(" MFLOPs")]
            if not names or system == "one expert":
                continue
            points = [_mean(seeds, system, name) for name in names]
            label = f"{system}, {kind}"
            axes.plot(*zip(*points, strict=True), style, marker=".", label=label, alpha=0.8)
        if "system top-1" in figures or system == "base":
            point = _mean(seeds, system, "base" if system == "base" else "system")
            axes.plot(*point, "s", color="black")
            axes.annotate(system, point, xytext=(6, 6), textcoords="offset points")
    log_axis(axes)
    axes.set_xlabel("10⁶ multiply-adds for an image")
    axes.set_ylabel("top-1 [%]")
    axes.set_title(f"Single-gated mixtures on Fashion-MNIST over τ, {mean_of(len(seeds))}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def log_axis(axes: Axes) -> None:
    """A horizontal axis in equal ratios whose numbers are written out."""
    from matplotlib import ticker

    axes.set_xscale("log")
    for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_format(ticker.FormatStrFormatter("%g"))


def _mean(seeds: Sequence[Figures], system: str, name: str) -> tuple[float, float]:
    costs = [seed[system][f"{name} MFLOPs"] for seed in seeds]
    accuracies = [seed[system][f"{name} top-1"] for seed in seeds]
    return float(np.mean(costs)), float(np.mean(accuracies))
