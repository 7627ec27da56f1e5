"""All classification systems on Fashion-MNIST, trained in memory as long as each other.

Single networks of several sizes are the yardstick: what a system reaches is compared with what one
network of its multiply-adds reaches, read off the curve through them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ..checkpoint import read_part
from ..engine import load_config
from ..engine.classifier_analysis import measure_latency
from ..errors import ConfigError, DataError
from ..modeling.classifiers import build_classifier
from ..modeling.classifiers.coe_classifier import read_delegator
from ..moe import PixelEmbedder, class_means, cluster_partition, num_parameters
from .classifier_tables import Figures, Pair, log_axis, mean_of
from .classifiers import Images, measure, read_images, train
from .statistics import paired_difference, summarise

_CLASSIFIER = "MODEL.CLASSIFIER."
_BATCHES = (1, 64)
_TIMED, _ROUNDS = 40, 5


@dataclass(frozen=True)
class Recipe:
    """How a system is made.

    Attributes:
        config: of ``configs/classification``, without ``fashion_mnist_`` and ``.yaml``.
        keys: values by keys of ``MODEL.CLASSIFIER``.
        batch: images a step.
        rate: learning rate as a stage begins.
        delegator_of: the system whose trained delegator it takes over.
    """

    config: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 128
    rate: float = 3e-3
    delegator_of: str = ""


def _network(channels: int, depth: int, config: str = "single", **keys: Any) -> Recipe:
    return Recipe(config, {"CHANNELS": channels, "DEPTH": depth, **keys})


_DELEGATOR = {"CHANNELS": 4, "DEPTH": 1, "COE.DELEGATOR_CHANNELS": 4, "COE.DELEGATOR_DEPTH": 1}
SINGLES = ("single, 0.16", "single, 0.35", "single, 0.54", "single, 1.06")
"""Names of the single networks, from the cheapest, by their 10⁶ multiply-adds at 14×14 pixels."""
SYSTEMS: dict[str, Recipe] = {
    **dict(zip(SINGLES, map(_network, (4, 4, 5, 7), (1, 2, 2, 2)), strict=True)),
    "ensemble of 2": _network(4, 1, "ensemble"),
    "HydraRes": _network(5, 1, "hydra"),
    "DynK-Hydra": _network(5, 1, "dynk"),
    "CoE, 1 expert": Recipe("coe", {**_DELEGATOR, "COE.EXPERTS": 1}),
    "CoE, 4 experts": Recipe("coe", _DELEGATOR),
    # Each subtask trains on its own images of a batch: twice the batch for four subtasks.
    "CoE, 16 experts": Recipe(
        "coe",
        {**_DELEGATOR, "COE.EXPERTS": 16, "COE.SUBTASKS": 4},
        batch=256,
        delegator_of="CoE, 4 experts",
    ),
    "single gate": _network(4, 1, "single_gate"),
    "per-example routing": Recipe(
        "per_example_cells",
        {
            "PER_EXAMPLE.LAYERS": 1,
            "PER_EXAMPLE.FILTERS": 4,
            "PER_EXAMPLE.CONVOLUTIONS": 1,
            "PER_EXAMPLE.NORM_GROUPS": 2,
            "PER_EXAMPLE.EXPERTS": ["conv_3x3", "conv_5x5", "max_pool_3x3", "skip_connect"],
            "PER_EXAMPLE.K_FIRST": 4,
            "PER_EXAMPLE.K_LAST": 1,
        },
        rate=1e-2,
    ),
}
"""Systems by name, in the order in which they are trained."""

SYSTEM_PAIRS: tuple[Pair, ...] = (
    (("CoE, 1 expert", "system"), ("CoE, 4 experts", "system")),
    (("CoE, 4 experts", "system"), ("CoE, 16 experts", "system")),
    (("ensemble of 2", "system"), ("HydraRes", "system")),
    (("HydraRes", "system"), ("DynK-Hydra", "system")),
    (("single gate", "base"), ("single gate", "bagging")),
)
"""What is compared with what."""


def system_figures(
    folder: Path,
    seed: int,
    iterations: int,
    output: Path,
    *,
    size: int = 14,
    names: Sequence[str] = tuple(SYSTEMS),
    finished: Mapping[str, Mapping[str, float]] | None = None,
    done: Callable[[dict[str, dict[str, float]]], None] = lambda figures: None,
) -> dict[str, dict[str, float]]:
    """Accuracy, multiply-adds and parameters of every system, for one seed.

    Args:
        folder: with Fashion-MNIST's files.
        seed: of weights, order and K-means.
        iterations: of each training, all stages together.
        output: gets the systems' weights.
        size: rows and columns of an image.
        names: which to train, in this order.
        finished: figures of an interrupted call, whose systems are not trained again.
        done: is given the figures so far after each system.

    Returns:
        Figures by name, by system.

    Raises:
        ConfigError: there is no system of a name.
        DivdrError: a file is missing or damaged.
    """
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise ConfigError(
            f"no system is called {unknown[0]!r} here; known are {'; '.join(SYSTEMS)}"
        )
    images, tests = read_images(folder, "train", size), read_images(folder, "test", size)
    found = {name: dict(figures) for name, figures in (finished or {}).items()}
    for name in names:
        if name in found:
            continue
        recipe = SYSTEMS[name]
        system = _build(recipe, seed, iterations, size, images)
        if recipe.delegator_of:
            read_delegator(str(_weights(output, recipe.delegator_of, seed)), system)
        train(system, images, iterations, seed=seed, batch=recipe.batch, rate=recipe.rate)
        weights = {f"system.{key}": value for key, value in system.state_dict().items()}
        torch.save({"model": weights}, _weights(output, name, seed))
        found[name] = {**measure(system, tests), "parameters": num_parameters(system)}
        done(found)
    return found


def _weights(output: Path, name: str, seed: int) -> Path:
    return output / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}.pth"


def _build(recipe: Recipe, seed: int, iterations: int, size: int, images: Images) -> Any:
    torch.manual_seed(seed)
    fixed: dict[str, Any] = {
        "MODEL.DEVICE": "cpu",
        "SEED": seed,
        "SOLVER.MAX_ITER": iterations,
        "INPUT.CLASSIFICATION.SIZE": size,
    }
    keys = {_CLASSIFIER + key: value for key, value in recipe.keys.items()}
    if recipe.delegator_of:
        keys[_CLASSIFIER + "COE.DELEGATOR"] = "in memory"
    pairs = [part for pair in {**fixed, **keys}.items() for part in pair]
    config = f"configs/classification/fashion_mnist_{recipe.config}.yaml"
    cfg = load_config(config, pairs)
    system: Any = build_classifier(cfg)
    if hasattr(system, "set_partition") and not getattr(system, "has_partition", True):
        embedded = class_means(
            PixelEmbedder(), [(images.pixels, images.labels)], cfg.MODEL.CLASSIFIER.NUM_CLASSES
        )
        branches = cfg.MODEL.CLASSIFIER.HYDRA.BRANCHES
        system.set_partition(cluster_partition(embedded, branches, seed=seed))
    return system


@torch.no_grad()
def system_times(
    folder: Path, output: Path, *, seed: int, size: int = 14
) -> dict[str, dict[str, float]]:
    """Milliseconds an image of every system that was trained with a seed, on one thread.

    Args:
        folder: with Fashion-MNIST's files.
        output: with the weights that :func:`system_figures` left.
        seed: of the training.
        size: rows and columns of an image.

    Returns:
        "ms at 1" and "ms at 64", the sizes of batches, by system; what an image chose ran alone.
    """
    tests = read_images(folder, "test", size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[str, dict[str, float]] = {}
        for name, recipe in SYSTEMS.items():
            path = _weights(output, name, seed)
            if not path.is_file():
                continue
            system = _build(recipe, seed, 100, size, tests)
            weights = read_part(str(path), "system.", "system")
            system.load_state_dict(weights, strict=False)
            found[name] = {}
            for count in _BATCHES:
                inputs = list(tests.pixels.split(count)[:_TIMED])
                times = measure_latency(system, inputs, _ROUNDS).milliseconds
                found[name][f"ms at {count}"] = times.get("groups", times["all"])
        return found
    finally:
        torch.set_num_threads(threads)


def above_singles(figures: Figures, name: str, answer: str = "system") -> float:
    """Points of accuracy that a system has above one network of its multiply-adds.

    The network's accuracy is read off a curve through the single ones, straight over the logarithm
    of multiply-adds between them and level beyond.

    Args:
        figures: of one seed.
        name: the system.
        answer: of its answers.
    """
    singles = [figures[single] for single in SINGLES if single in figures]
    costs = np.log([single["system MFLOPs"] for single in singles])
    own = figures[name]
    level = np.interp(
        np.log(own[f"{answer} MFLOPs"]), costs, [single["system top-1"] for single in singles]
    )
    return own[f"{answer} top-1"] - float(level)


def system_table(seeds: Sequence[Figures], times: Mapping[str, Mapping[str, float]]) -> str:
    """Every system's own answer, beside one network of its multiply-adds, in Markdown.

    Args:
        seeds: figures of each seed.
        times: of :func:`system_times`; {}: no such columns.

    Raises:
        DataError: there are no figures.
    """
    if not seeds:
        raise DataError("there are no figures: no seed was measured")
    rows = []
    for name in SYSTEMS:
        if not all(name in seed for seed in seeds):
            continue
        answer = _answer(seeds[0][name])
        accuracy = summarise([seed[name][f"{answer} top-1"] for seed in seeds])
        above = [above_singles(seed, name, answer) for seed in seeds]
        found = paired_difference([0.0] * len(above), above)
        spread = f" ({found.interval()})" if found.n > 1 else ""
        interval = "" if name in SINGLES else found.text() + spread
        cost = np.mean([seed[name][f"{answer} MFLOPs"] for seed in seeds])
        each = [f"{times[name][f'ms at {size}']:.3f}" for size in _BATCHES if name in times]
        rows.append(
            (
                name if answer == "system" else f"{name}, {answer}",
                f"{cost:.3f}",
                accuracy.text(),
                interval,
                f"{seeds[0][name]['parameters']:,}",
                *each,
            )
        )
    heads = ["system", "MFLOPs", "top-1 [%]", "above one network of its cost", "parameters"]
    heads += [f"ms an image, batch {size}" for size in _BATCHES] if times else []
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True) + "\n"


def _answer(figures: Mapping[str, float]) -> str:
    return "system" if "system top-1" in figures else "bagging"


def draw_systems(
    seeds: Sequence[Figures], times: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Accuracy against multiply-adds, and against milliseconds where they were measured.

    Single networks are joined by a line, and so are the thresholds of a system that has one.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in seeds[0] if all(name in seed for seed in seeds)]
    panels = ["10⁶ multiply-adds for an image"]
    panels += [f"ms an image, batch {size}" for size in _BATCHES] if times else []
    figure, rows = plt.subplots(1, len(panels), figsize=(7 * len(panels), 5), squeeze=False)
    others = [name for name in names if name not in SINGLES]
    colours = {name: f"C{number}" for number, name in enumerate(others)}
    for number, (axes, label) in enumerate(zip(rows[0], panels, strict=True)):

        def point(name: str, answer: str, number: int = number) -> tuple[float, float]:
            accuracy = float(np.mean([seed[name][f"{answer} top-1"] for seed in seeds]))
            if number:
                return times[name][f"ms at {_BATCHES[number - 1]}"], accuracy
            return float(np.mean([seed[name][f"{answer} MFLOPs"] for seed in seeds])), accuracy

        shown = [name for name in names if not number or name in times]
        line = [point(name, "system") for name in shown if name in SINGLES]
        axes.plot(*zip(*sorted(line), strict=True), "ks-", label="single networks")
        for name in shown:
            if name in SINGLES:
                continue
            axes.plot(*point(name, _answer(seeds[0][name])), "o", color=colours[name], label=name)
            curve = [k.removesuffix(" top-1") for k in seeds[0][name] if k.startswith("threshold-")]
            curve = [answer for answer in curve if not answer.endswith("MFLOPs")]
            if curve and not number:
                points = sorted(point(name, answer) for answer in curve)
                axes.plot(*zip(*points, strict=True), "-", color=colours[name], alpha=0.6)
        shown_from = min(point(name, _answer(seeds[0][name]))[1] for name in shown)
        axes.set_ylim(bottom=shown_from - 1)  # thresholds may lead far below
        log_axis(axes)
        axes.set_xlabel(label)
        axes.set_ylabel("top-1 [%]")
        axes.grid(alpha=0.3)
    rows[0][0].legend(fontsize=8)
    figure.suptitle(f"Classifiers on Fashion-MNIST, {mean_of(len(seeds))}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
