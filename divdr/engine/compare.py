"""Finished runs side by side: accuracy and GFLOPs as evaluated, seconds an image measured anew.

And how long finished models take alone.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from ..checkpoint import weight_file
from ..data import build_test_loader
from ..errors import ConfigError, DataError
from ..packaged_configs import config_beside, find_weights
from .execution_modes import load_trained, time_in_turns
from .setup import load_config
from .trainer import Trainer


@dataclass(frozen=True)
class RunFigures:
    """One run's row.

    Attributes:
        name: of its folder.
        accuracy: {data set: (AP, AP50)} of boxes, in percent.
        gflops: backbone and neck, mean over the images of the first data set, padded.
        gflops_800: backbone and neck at 800×800; None if the run did not report it.
        seconds: median over images and rounds of the whole model's forward for one image.
    """

    name: str
    accuracy: dict[str, tuple[float, float]]
    gflops: float
    gflops_800: float | None
    seconds: float


def compare_runs(folders: Sequence[str], *, images: int = 12, rounds: int = 5) -> list[RunFigures]:
    """Gather what runs of ``tools/train_net.py`` wrote, and time their models.

    The models take turns image by image, so that a machine's moods meet all alike.

    Args:
        folders: ``OUTPUT_DIR`` of each run, with ``config.yaml``, ``model_final.pth`` and
            ``inference/results.json``.
        images: how many of the first run's test images are timed.
        rounds: how often each.

    Raises:
        DataError: a folder holds no finished, evaluated run.
    """
    runs = [_read(folder) for folder in folders]
    models = [_load(cfg, folder) for (cfg, _), folder in zip(runs, folders, strict=True)]
    first = runs[0][0]
    loader = Trainer.build_test_loader(first, first.DATASETS.TEST[0])
    batches = list(itertools.islice(loader, images))
    with torch.no_grad():
        timed = time_in_turns(dict(zip(folders, models, strict=True)), batches, rounds)
    return [
        _figures(
            os.path.basename(os.path.normpath(folder)),
            cfg,
            results,
            statistics.median(timed[folder]),
        )
        for folder, (cfg, results) in zip(folders, runs, strict=True)
    ]


def comparison_table(rows: Sequence[RunFigures]) -> str:
    """Markdown, one row a run."""
    datasets = list(rows[0].accuracy)
    headers = ["run"]
    for name in datasets:
        headers += [f"AP {name}", f"AP50 {name}"]
    headers += ["GFLOPs", "GFLOPs at 800×800", "seconds/image"]
    body = []
    for row in rows:
        line: list[Any] = [row.name]
        for name in datasets:
            ap, ap50 = row.accuracy.get(name, (float("nan"), float("nan")))
            line += [f"{ap:.1f}", f"{ap50:.1f}"]
        at_800 = "" if row.gflops_800 is None else f"{row.gflops_800:.2f}"
        line += [f"{row.gflops:.3f}", at_800, f"{row.seconds:.3f}"]
        body.append(line)
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


@dataclass(frozen=True)
class ModelTimes:
    """How long a finished model takes for an image.

    Attributes:
        name: as it was asked for.
        size: (height, width) of its first test image as the network sees it, pixels.
        milliseconds: of the whole model's forward for one image, median over images and rounds.
        spread: first and third quartile.
    """

    name: str
    size: tuple[int, int]
    milliseconds: float
    spread: tuple[float, float]


def time_models(
    weights: Sequence[str], *, device: str = "cpu", images: int = 12, rounds: int = 5
) -> list[ModelTimes]:
    """Time finished models as they evaluate, by a plan where they are routed, image by image.

    Args:
        weights: checkpoints, folders of runs, or names of models that divdr brings along; beside
            each lies its ``config.yaml``.
        device: that they run on.
        images: how many of its first test images are timed.
        rounds: how often each.

    Raises:
        DivdrError: a model or its test set cannot be used.
    """
    found = []
    for name in weights:
        file = find_weights(name)
        own = ["MODEL.WEIGHTS", str(weight_file(file)), "MODEL.DEVICE", device]
        cfg = load_config(str(config_beside(file)), own)
        model = load_trained(cfg)
        if not cfg.DATASETS.TEST:
            raise ConfigError(f"the configuration of {name} names no DATASETS.TEST to time it on")
        batches = list(itertools.islice(build_test_loader(cfg, cfg.DATASETS.TEST[0]), images))
        first = [batch[:1] for batch in batches]
        with torch.no_grad():
            seconds = time_in_turns({name: model}, first, rounds)[name]
        low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
        rows, columns = first[0][0]["image"].shape[-2:]
        found.append(ModelTimes(name, (rows, columns), middle, (low, high)))
    return found


def times_table(rows: Sequence[ModelTimes]) -> str:
    """Markdown, one row a model."""
    body = [
        [
            row.name,
            f"{row.size[0]}×{row.size[1]}",
            f"{row.milliseconds:.2f}",
            f"{row.spread[0]:.2f} to {row.spread[1]:.2f}",
        ]
        for row in rows
    ]
    headers = ["model", "pixels", "ms/image", "half of them"]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def evaluated_gflops(results: Mapping[str, Any]) -> float | None:
    """10⁹ multiply-adds of backbone and neck that an evaluation counted for an image, padded.

    Args:
        results: of one data set, as ``inference/results.json`` has them.

    Returns:
        The mean over images, of routed models of what ran; None where none were counted.
    """
    routing, plain = results.get("routing", {}), results.get("cost", {})
    return routing.get("real_gflops_with_neck", routing.get("real_gflops", plain.get("gflops")))


def _read(folder: str) -> tuple[CfgNode, dict[str, Any]]:
    paths = [os.path.join(folder, name) for name in ("config.yaml", "model_final.pth")]
    paths.append(os.path.join(folder, "inference", "results.json"))
    for path in paths:
        if not os.path.exists(path):
            raise DataError(f"{folder} holds no finished run: {path} is missing")
    with open(paths[2], encoding="utf-8") as file:
        return load_config(paths[0]), json.load(file)


def _load(cfg: CfgNode, folder: str) -> nn.Module:
    cfg.MODEL.WEIGHTS = os.path.join(folder, "model_final.pth")
    return load_trained(cfg)


def _figures(name: str, cfg: CfgNode, results: Mapping[str, Any], seconds: float) -> RunFigures:
    accuracy = {
        dataset: (results[dataset]["bbox"]["AP"], results[dataset]["bbox"]["AP50"])
        for dataset in cfg.DATASETS.TEST
    }
    first = results[cfg.DATASETS.TEST[0]]
    gflops = evaluated_gflops(first)
    assert gflops is not None
    if "routing" in first:
        costs = first["routing"]
        at_800 = costs.get("real_gflops_800x800_with_neck", costs.get("real_gflops_800x800"))
    else:
        at_800 = first["cost"].get("gflops_800x800")
    return RunFigures(name, accuracy, gflops, at_800, seconds)
