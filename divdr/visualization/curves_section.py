"""How training went: losses, cost and diversity over iterations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from .curves import (
    DIVERSITY,
    GFLOPS,
    Metrics,
    diversity_figure,
    gflops_figure,
    loss_keys,
    losses_figure,
)
from .parts import Picture, Section, change, listing
from .run_data import RunData


def curves_section(runs: Sequence[RunData]) -> Section:
    """Build up to three pictures: losses, GFLOPs, diversity."""
    section = Section("Training")
    metrics = {run.name: run.metrics or {} for run in runs}
    without = [name for name, series in metrics.items() if not series]
    if without:
        section.sentences.append(f"There are no training curves for {listing(without)}.")
    if len(without) == len(runs):
        return section
    losses = {key: key for key in loss_keys(metrics)}
    words = "The losses that training minimises."
    _add(section, losses_figure, metrics, losses, words, "losses", "wide")
    _add(
        section,
        gflops_figure,
        metrics,
        {f"{name} cost": key for name, key in GFLOPS.items()},
        "Expected cost (solid: gates × multiply-adds) and real cost (dashed: what would run) of "
        "the training images.",
        "costs",
    )
    _add(
        section,
        diversity_figure,
        metrics,
        DIVERSITY,
        "Diversity of the routes: inter is the mean distance between centres, intra the mean "
        "distance within a cluster, over its pairs of images or to its centre. Lines are of the "
        "experts over the training images, at each clustering; marks are of a new K-means over "
        "the evaluated images (refit), at each evaluation.",
        "clustering measures",
    )
    return section


def _add(
    section: Section,
    build: Callable[[Mapping[str, Metrics]], Figure],
    metrics: dict[str, Metrics],
    keys: Mapping[str, str],
    words: str,
    what: str,
    shape: str = "",
) -> None:
    if not any(key in series for series in metrics.values() for key in keys.values()):
        section.sentences.append(f"The training curves hold no {what}.")
        return
    section.pictures.append(Picture(build(metrics), f"{words} {_changes(metrics, keys)}", shape))


def _changes(metrics: Mapping[str, Metrics], keys: Mapping[str, str]) -> str:
    sentences = []
    for run, series in metrics.items():
        parts = []
        for name, key in keys.items():
            if key in series:
                iterations, values = series[key]
                if len(iterations) > 1:
                    parts.append(change(name, float(values[0]), float(values[-1])))
        if parts:
            sentences.append(f"{run}: from the first to the last entry, {listing(parts)}.")
    return " ".join(sentences)
