"""A trained model ready for evaluation, and run in several modes: accuracy, cost, milliseconds."""

from __future__ import annotations

import itertools
import json
import logging
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ..benchmark import in_turns
from ..checkpoint import write_text_atomically
from ..errors import ConfigError, DataError
from ..inference import InferencePlan, Route, vote
from ..modeling import Executor, RoutingSupervision, attached_routing
from .about import About
from .checkpointer import load_for_evaluation
from .static_experts import Gathered, StaticExperts, use_static_experts
from .trainer import Trainer

logger = logging.getLogger(__name__)


def time_in_turns(
    functions: Mapping[str, Callable[[Any], Any]], inputs: Sequence[Any], rounds: int
) -> dict[str, list[float]]:
    """Call every function on every input, in turns; on the first input once more, to warm up.

    Args:
        functions: by name.
        inputs: what they are called with.
        rounds: how often each.

    Returns:
        Seconds of every call, by function (``divdr.benchmark.in_turns``).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number, x in enumerate(tqdm(inputs, desc="timing", leave=False, disable=None)):
        calls = {name: partial(function, x) for name, function in functions.items()}
        for name, times in in_turns(calls, rounds, device, warm_up=int(number == 0)).items():
            seconds[name].extend(times.seconds)
    return seconds


ACCURACIES = {
    ("sem_seg", "mIoU"): "mIoU",
    ("sem_seg", "IoU"): "mIoU",
    ("bbox", "AP"): "box AP",
    ("segm", "AP"): "mask AP",
    ("keypoints", "AP"): "keypoint AP",
    ("panoptic_seg", "PQ"): "PQ",
    ("classification", "top1"): "top-1",
}


@dataclass(frozen=True)
class ModeFigures:
    """A row of the comparison.

    Attributes:
        name: of the mode.
        accuracy: in percent, by the name of the measure.
        gflops: real 10⁹ multiply-adds of the backbone, mean over the images.
        milliseconds: median of the whole model's forward for one image.
    """

    name: str
    accuracy: dict[str, float]
    gflops: float
    milliseconds: float


def modes_of(
    routing: RoutingSupervision, experts: StaticExperts, train: Gathered
) -> dict[str, Executor | None]:
    """The execution modes to compare: dynamic, static experts, and everything open.

    Args:
        routing: attached to the trained model, in evaluation.
        experts: its static experts.
        train: routes of the training images.

    Returns:
        What the backbone runs with, by name; None is the network itself.
    """
    network = routing.backbone.network
    plan = InferencePlan(network)
    union = vote(network.space, train.activations, train.initial, 0.0)
    everything = Route.open(network.space)
    return {
        "dynamic": None,
        "static experts, by dispatcher": experts.plan(routing),
        "static, every path that a training image takes": partial(plan, route=union),
        "all open, at their mean": partial(plan, route=_all_at_mean(everything, train)),
        "all open, at 1": partial(plan, route=everything),
    }


def _all_at_mean(route: Route, train: Gathered) -> Route:
    """Every gate at its mean where images open it, those that none opens at the mean of all."""
    gates = train.activations.view(len(train.activations), -1, 3)
    opened = (gates > 0).sum(dim=0)
    usual = float(gates.sum() / opened.sum().clamp(min=1))
    mean = torch.where(opened > 0, gates.sum(dim=0) / opened.clamp(min=1), usual)
    initial = train.initial.mean(dim=0).clamp(min=1e-3)
    return Route(route.space, route.gates * mean, route.initial * initial)


def compare_modes(
    cfg: CfgNode,
    model: nn.Module,
    modes: Mapping[str, Executor | None],
    folder: str | Path,
    *,
    images: int = 12,
    rounds: int = 5,
) -> list[ModeFigures]:
    """Evaluate a model on ``DATASETS.TEST`` in every mode, and time the modes in turns.

    Args:
        cfg: the model's configuration.
        model: trained, with routing attached, in evaluation.
        modes: what its backbone runs with, by name.
        folder: takes what evaluation writes, a folder for each mode.
        images: test images to time.
        rounds: times each.

    Raises:
        DataError: the test set cannot be used.
    """
    routing = attached_routing(model)
    assert routing is not None
    backbone = routing.backbone

    def run(executor: Executor | None, inputs: list[dict]) -> Any:
        backbone.run_with(executor)
        return model(inputs)

    rows = []
    loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    batches = list(itertools.islice(loader, images))
    try:
        with torch.no_grad():
            functions = {name: partial(run, executor) for name, executor in modes.items()}
            seconds = time_in_turns(functions, batches, rounds)
        for number, (name, executor) in enumerate(modes.items()):
            here = cfg.clone()
            here.defrost()
            here.OUTPUT_DIR = os.path.join(folder, f"way_{number}")
            backbone.run_with(executor)
            results = Trainer.test(here, model)
            if len(cfg.DATASETS.TEST) > 1:
                results = results[cfg.DATASETS.TEST[0]]
            accuracy = accuracy_of(results)
            gflops = float(results["routing"]["real_gflops"])
            rows.append(ModeFigures(name, accuracy, gflops, 1e3 * statistics.median(seconds[name])))
    finally:
        backbone.run_with(None)
    return rows


def accuracy_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{name: per cent} of the measures that count, from the results of a data set."""
    return {
        name: float(results[task][key])
        for (task, key), name in ACCURACIES.items()
        if key in results.get(task, {})
    }


def modes_table(rows: Sequence[ModeFigures]) -> str:
    """Markdown, one row a mode."""
    measures = list(rows[0].accuracy)
    body = [
        [
            row.name,
            *(f"{row.accuracy[m]:.2f}" for m in measures),
            f"{row.gflops:.4g}",
            f"{row.milliseconds:.1f}",
        ]
        for row in rows
    ]
    headers = ["", *measures, "real GFLOPs", "ms/image"]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def write_modes(path: str | Path, rows: Sequence[ModeFigures], **more: Any) -> None:
    """Write the comparison as JSON, ``more`` beside it."""
    data = {"ways": [asdict(row) for row in rows], **more}
    write_text_atomically(Path(path), json.dumps(data, indent=2))


def read_modes(path: str | Path) -> list[ModeFigures]:
    """Read what :func:`write_modes` wrote.

    Raises:
        DataError: the file is damaged.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return [ModeFigures(**row) for row in data["ways"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no comparison of execution modes ({error!r})") from None


def load_trained(cfg: CfgNode) -> nn.Module:
    """Build the model, load ``MODEL.WEIGHTS``, and take static experts if the config names some.

    Raises:
        CheckpointError: no weights, weights or experts of another model, or of other classes than
            those of ``DATASETS.TEST``.
    """
    return load_with_about(cfg, cfg.DATASETS.TEST)[0]


def load_with_about(cfg: CfgNode, datasets: Sequence[str] = ()) -> tuple[nn.Module, About | None]:
    """The model of :func:`load_trained`, and what its checkpoint says of it.

    Args:
        cfg: the whole configuration.
        datasets: must have the classes that the model was trained on, as far as they are registered
            and the checkpoint says so.

    Raises:
        CheckpointError: see :func:`load_trained`.
    """
    model = Trainer.build_model(cfg).eval()
    about = load_for_evaluation(
        model,
        cfg.MODEL.WEIGHTS,
        about=[About.of(cfg, name) for name in datasets] or [About.of(cfg)],
        routing=attached_routing(model),
    )
    turn_dial(model, cfg)
    if cfg.MODEL.ROUTING.STATIC_EXPERTS:
        use_static_experts(model, cfg.MODEL.ROUTING.STATIC_EXPERTS)
    return model, about


def turn_dial(model: nn.Module, cfg: CfgNode) -> None:
    """Set a loaded model's cost as ``MODEL.ROUTING.DIAL`` says.

    Raises:
        ConfigError: the model has no such dial.
    """
    position = cfg.MODEL.ROUTING.DIAL
    if position < 0:
        return
    routing = attached_routing(model)
    if routing is None:
        raise ConfigError(f"MODEL.ROUTING.DIAL is {position}, and the model has no routed backbone")
    setting = routing.turn_dial(position)
    logger.info(
        "Dial at %g: real share %.3f, %.4g GFLOPs an image when calibrated",
        position,
        setting.share,
        setting.gflops,
    )
