"""Pictures of a study (DivDR, Figures 4 to 8), as its file asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..visualization import (
    RouteData,
    RunData,
    SweepPanel,
    joint_embedding_figure,
    montage_figure,
    need_figure,
    progress_figure,
    read_metrics,
    read_nearest,
    sweep_figure,
    tradeoff_figure,
)
from .by_image import costs_and_needs, gains_by_need
from .definition import Study, Sweep
from .planning import Run
from .tables import Numbers, common_seeds, values

Runs = Mapping[str, Mapping[int, Run]]
_NEAREST = 5  # images a centre, as in Figure 5
_DPI = 130


def write_pictures(study: Study, runs: Runs, numbers: Numbers, folder: Path) -> list[Path]:
    """Draw what the finished runs allow, as PNG.

    Args:
        study: its ``pictures`` are drawn.
        runs: by variant and seed.
        numbers: of the finished ones.
        folder: where the files go.

    Returns:
        The files.
    """
    written = []
    for name, figure in _figures(study, runs, numbers):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=_DPI, facecolor="white")
        written.append(path)
    return written


def _figures(study: Study, runs: Runs, numbers: Numbers) -> Iterator[tuple[str, Figure]]:
    asked = study.pictures
    seed = _common_seed(numbers, asked.embedding)
    if seed is not None:
        routes = {f"{v}, seed {seed}": _routes(runs[v][seed]) for v in asked.embedding}
        known = {name: data for name, data in routes.items() if data is not None}
        if known:
            yield "embedding", joint_embedding_figure(known)
    for variant in asked.montage:
        seed = _common_seed(numbers, [variant])
        routes_of = _routes(runs[variant][seed]) if seed is not None else None
        if routes_of is not None and len(routes_of.centres):
            images, _ = read_nearest(routes_of, _NEAREST)
            if any(images):
                sizes = routes_of.images_per_expert()
                titles = [f"{variant}, expert {k} ({n} images)" for k, n in enumerate(sizes)]
                yield f"nearest_{study.variant(variant).file_name}", montage_figure(images, titles)
    if asked.sweep:
        figure = _sweep(study, asked.sweep, runs, numbers)
        if figure is not None:
            yield "sweep", figure
    if asked.tradeoff:
        cost, value = (study.metric(key) for key in asked.tradeoff)
        points = {v: _points(own, cost.key, value.key) for v, own in numbers.items()}
        if any(points.values()):
            yield "tradeoff", tradeoff_figure(points, cost.label, value.label)
    if asked.progress:
        metric = study.metric(asked.progress)
        curves = {v: _curves([runs[v][s] for s in own], metric.key) for v, own in numbers.items()}
        if any(curves.values()):
            yield "progress", progress_figure(curves, metric.label)
    needs = {}
    gains = {}
    for a, b in asked.need:
        seeds = common_seeds(numbers, [a, b])
        if seeds:
            needs[f"{b}, seed {seeds[0]}"] = costs_and_needs(runs[b][seeds[0]].folder)
            pairs = [(runs[a][seed].folder, runs[b][seed].folder) for seed in seeds]
            gains[f"{b} − {a}"] = gains_by_need(pairs)
    if gains:
        yield "need", need_figure(needs, gains)


def _common_seed(numbers: Numbers, variants: Sequence[str]) -> int | None:
    """The first seed that all have finished; None if there is none, or no variant."""
    return min(common_seeds(numbers, variants), default=None)


def _routes(run: Run) -> RouteData | None:
    return RunData.load(run.folder).routes_of(run.cfg.DATASETS.TEST[0])


def _points(
    own: Mapping[int, Mapping[str, float]], cost: str, value: str
) -> list[tuple[float, float]]:
    costs, worth = values(own, cost), values(own, value)
    return [(costs[s], worth[s]) for s in costs if s in worth]


def _curves(runs: Sequence[Run], key: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Iterations and values of a metric's evaluations in runs that have two or more."""
    logged = [read_metrics(run.folder / "metrics.json") for run in runs]
    found = [own[name] for own in logged if (name := key.replace(".", "/")) in own]
    return [(iterations, values) for iterations, values in found if len(iterations) > 1]


def _sweep(study: Study, sweep: Sweep, runs: Runs, numbers: Numbers) -> Figure | None:
    variants = [v for v in sweep.variants if numbers.get(v)]
    if not variants:
        return None
    settings = [_setting(next(iter(runs[v].values())), sweep.setting) for v in variants]
    reference = numbers.get(sweep.reference, {})
    panels = [
        SweepPanel(
            study.metric(key).label,
            [list(values(numbers[v], key).values()) for v in variants],
            list(values(reference, key).values()),
        )
        for key in sweep.metrics
    ]
    return sweep_figure(panels, settings, sweep.name, log=sweep.log, reference=sweep.reference)


def _setting(run: Run, key: str) -> object:
    node = run.cfg
    for part in key.split("."):
        node = node[part]
    return node
