"""Gate activations as points on a plane, of one run or of several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from .parts import MARKERS, NO_EXPERT, colour
from .run_data import RouteData

Place = Literal["outside lower left", "outside lower right"]
METHODS = ("tsne", "pca")
_FEWEST = 5  # t-SNE of fewer points says nothing


def embed(activations: np.ndarray, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Place images on a plane so that similar gate activations lie close.

    t-SNE gives way to PCA for fewer than five images, for a single number an image, and when all
    images have the same activation.

    Args:
        activations: (N, D), finite.
        method: "tsne" or "pca".
        seed: makes t-SNE repeatable.

    Returns:
        (N, 2) float64.

    Raises:
        ValueError: unknown method, or the shape is not (N, D) with D >= 1.
    """
    rows = np.asarray(activations, dtype=np.float64)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"expected activations (N, D), got {rows.shape}")
    count, size = rows.shape
    if count < 2 or (rows == rows[0]).all():
        return np.zeros((count, 2))
    if method == "pca" or method_used(rows) == "pca":
        points = PCA(n_components=min(2, size), svd_solver="full").fit_transform(rows)
        return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    perplexity = min(30.0, (count - 1) / 3)
    return (
        TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
        .fit_transform(rows)
        .astype(np.float64)
    )


def method_used(activations: np.ndarray) -> str:
    """What ``embed(activations, "tsne")`` really does: "tsne" or "pca"; (N, D)."""
    rows = np.asarray(activations)
    few = len(rows) < _FEWEST or rows.shape[1] < 2
    return "pca" if few or (rows == rows[0]).all() else "tsne"


def embedding_figure(
    points: np.ndarray,
    groups: np.ndarray,
    title: str,
    marks: Sequence[str] | None = None,
) -> Figure:
    """Scatter of images, coloured by expert.

    Args:
        points: (N, 2).
        groups: (N,) expert of each image, -1 for none.
        title: text above.
        marks: N labels that choose the marker's shape, e.g. scene characters. Ten shapes exist:
            with more labels, all but the nine most frequent become "other".

    Raises:
        ValueError: lengths differ.
    """
    points, groups = np.asarray(points), np.asarray(groups)
    names = np.asarray(list(marks) if marks is not None else [""] * len(points), dtype=object)
    if points.shape != (len(groups), 2) or len(names) != len(points):
        raise ValueError(
            f"points {points.shape}, {len(groups)} groups and {len(names)} marks do not fit"
        )
    names = _at_most(names, len(MARKERS))
    shapes = dict(zip(_sorted_labels(names), MARKERS, strict=False))
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.subplots()
    size = float(np.clip(9000 / max(len(points), 1), 12, 60))
    for group in np.unique(groups):
        for name, marker in shapes.items():
            mask = (groups == group) & (names == name)
            if mask.any():
                axis.scatter(
                    points[mask, 0],
                    points[mask, 1],
                    s=size,
                    marker=marker,
                    color=colour(int(group)),
                    alpha=0.8,
                    edgecolors="#ffffff",
                    linewidths=0.4,
                    gid=f"{group}:{name}",
                )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.margins(0.06)
    for spine in axis.spines.values():
        spine.set_color("#cccccc")
    axis.set_title(title, fontsize=10, loc="left")
    _legend(figure, _expert_handles(groups), "outside lower left")
    if marks is not None:
        shown = [_handle(name, marker, "#666666") for name, marker in shapes.items()]
        _legend(figure, shown, "outside lower right")
    return figure


def _legend(figure: Figure, handles: list[Line2D], place: Place) -> None:
    if handles:
        columns = 2 if len(handles) > 3 else 1
        figure.legend(handles=handles, loc=place, ncols=columns, fontsize=9, frameon=False)


def _at_most(names: np.ndarray, limit: int) -> np.ndarray:
    labels, counts = np.unique(names.astype(str), return_counts=True)
    if len(labels) <= limit:
        return names
    frequent = set(labels[np.argsort(-counts, kind="stable")[: limit - 1]])
    return np.asarray([n if n in frequent else "other" for n in names], dtype=object)


def _sorted_labels(names: np.ndarray) -> list[str]:
    return sorted(set(names), key=lambda name: (name == "other", name))


def _expert_handles(groups: np.ndarray) -> list[Line2D]:
    handles = []
    for group, count in zip(*np.unique(groups, return_counts=True), strict=True):
        name = "no expert" if group < 0 else f"expert {group}"
        shade = NO_EXPERT if group < 0 else colour(int(group))
        handles.append(_handle(f"{name} ({count})", "o", shade))
    return handles


def _handle(label: str, marker: str, shade: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=shade, markersize=7, label=label)


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
