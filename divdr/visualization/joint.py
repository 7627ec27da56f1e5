"""Gate activations of several runs on one plane (DivDR, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .embedding import embed
from .parts import NO_EXPERT, colour
from .route_data import RouteData

_RUNS_FROM = 4  # orange and blue, which the first experts do not have


def joint_embedding_figure(routes: Mapping[str, RouteData], seed: int = 0) -> Figure:
    """Place the activations of all runs with one t-SNE; draw them together, then each run alone.

    The first panel is coloured by run; the others, at the same places, by that run's experts, with
    the other runs in grey.

    Args:
        routes: by the name of the run, all over the same routing space.
        seed: of t-SNE.

    Raises:
        ValueError: no run, or routing spaces of different size.
    """
    if not routes:
        raise ValueError("no run to draw")
    if len({data.activations.shape[1] for data in routes.values()}) > 1:
        raise ValueError("the runs have gate activations of different lengths")
    points = embed(np.concatenate([data.activations for data in routes.values()]), seed=seed)
    owner = np.repeat(np.arange(len(routes)), [len(data) for data in routes.values()])
    figure = Figure(figsize=(3.4 * (len(routes) + 1), 3.9), layout="constrained")
    first, *others = figure.subplots(1, len(routes) + 1)
    for run, name in enumerate(routes):
        _scatter(first, points[owner == run], colour(_RUNS_FROM + run), name)
    _finish(first, "all runs")
    for run, (axis, (name, data)) in enumerate(zip(others, routes.items(), strict=True)):
        _scatter(axis, points[owner != run], NO_EXPERT, "", size=8)
        own = points[owner == run]
        for expert in np.unique(data.expert):
            label = "no expert" if expert < 0 else f"expert {expert}"
            _scatter(axis, own[data.expert == expert], colour(int(expert)), label)
        _finish(axis, name)
    return figure


def _scatter(axis: Axes, points: np.ndarray, shade: str, label: str, size: float = 22) -> None:
    axis.scatter(
        points[:, 0],
        points[:, 1],
        s=size,
        color=shade,
        alpha=0.8,
        edgecolors="#ffffff",
        linewidths=0.3,
        label=f"{label} ({len(points)})" if label else None,
    )


def _finish(axis: Axes, title: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.margins(0.06)
    axis.set_title(title, fontsize=10, loc="left")
    for spine in axis.spines.values():
        spine.set_color("#cccccc")
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=2,
        fontsize=8,
        frameon=False,
        handletextpad=0.2,
    )
