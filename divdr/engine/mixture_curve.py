"""A single-gated mixture at many τ: accuracy and cost, in one pass over the images."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators, inference_context
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ..checkpoint import write_text_atomically
from ..errors import ConfigError
from ..evaluation import (
    BoxHeadCostEvaluator,
    SegmentationHeadCostEvaluator,
    build_cost_evaluator,
    build_task_evaluator,
)
from ..modeling import ImageClassifier, unwrap
from ..modeling.roi_heads import box_head_of
from ..modeling.single_gate_head import single_gate_heads
from ..moe import SingleGate, check_probability
from .execution_modes import accuracy_of
from .trainer import Trainer

THRESHOLDS = {
    "anytime": (0.0, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 1.0),
    "confidence": (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.0),
}
"""τ of a curve, for each rule of the early exit; from all experts to none."""


@dataclass(frozen=True)
class MixturePoint:
    """A row of the curve.

    Attributes:
        exit: the rule of the early exit; "" for the finished model.
        threshold: τ.
        accuracy: in per cent, by the name of the measure.
        gflops: 10⁹ multiply-adds for an image: backbone, neck and the box head or segmentation
            head; of a classifier all.
        experts: that ran for a row, in the mean.
    """

    exit: str
    threshold: float
    accuracy: dict[str, float]
    gflops: float
    experts: float


def mixture_curve(
    cfg: CfgNode, model: nn.Module, thresholds: Mapping[str, Sequence[float]] = THRESHOLDS
) -> list[MixturePoint]:
    """Evaluate a mixture on the first of ``DATASETS.TEST`` at every τ.

    Args:
        cfg: of the mixture.
        model: with its weights.
        thresholds: values of τ for each rule of the early exit.

    Raises:
        ConfigError: the model is no single-gated mixture, a τ is out of range, or there is no test
            set.
    """
    mixture = _mixture(model)
    places = [(how, threshold) for how, values in thresholds.items() for threshold in values]
    for _, threshold in places:
        check_probability(threshold, "a threshold τ of the curve")
    settings, before = mixture.settings, mixture.threshold

    def choose(how: str, threshold: float) -> Callable[[], None]:
        def apply() -> None:
            mixture.settings = replace(settings, exit=how)
            mixture.threshold = threshold

        return apply

    try:
        found = evaluate_modes(cfg, model, [choose(*place) for place in places])
    finally:
        mixture.settings, mixture.threshold = settings, before
    return [_point(results, *place) for results, place in zip(found, places, strict=True)]


def finished_point(cfg: CfgNode, model: nn.Module) -> MixturePoint:
    """The same of the model that the mixture was made of."""
    return _point(evaluate_modes(cfg, model, [lambda: None])[0], "", 0.0)


def _mixture(model: nn.Module) -> Any:
    inner = unwrap(model)
    if isinstance(inner, ImageClassifier) and isinstance(inner.system, SingleGate):
        return inner.system
    heads = single_gate_heads(model)
    if not heads:
        raise ConfigError(f"{type(inner).__name__} is no single-gated mixture")
    return heads[0]


def evaluate_modes(
    cfg: CfgNode, model: nn.Module, modes: Sequence[Callable[[], None]]
) -> list[dict[str, Any]]:
    """Results on the first of ``DATASETS.TEST`` for every mode that a model can run in.

    What the modes cannot change, backbone and proposals, runs once for an image.

    Args:
        cfg: of the model.
        model: in evaluation.
        modes: each, called before the model, sets how it runs.

    Raises:
        ConfigError: there is no test set.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("accuracy is looked at on DATASETS.TEST, which names no data set")
    name = cfg.DATASETS.TEST[0]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        evaluators = []
        for _ in modes:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            evaluators.append(_evaluators(cfg, name, model, folder))
        for evaluator in evaluators:
            evaluator.reset()
        stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        forget = stack.enter_context(_remembering(model))
        loader = Trainer.build_test_loader(cfg, name)
        for inputs in tqdm(loader, desc="curve", leave=False, disable=None):
            forget()
            first: list[dict] = []
            for mode, evaluator in zip(modes, evaluators, strict=True):
                mode()
                outputs = model(inputs)
                first = first or outputs
                for output, known in zip(outputs, first, strict=True):
                    if "routing" in known:  # of the backbone, which ran for the first mode alone
                        output["routing"] = known["routing"]
                evaluator.process(inputs, outputs)
        return [dict(evaluator.evaluate()) for evaluator in evaluators]


def _evaluators(cfg: CfgNode, name: str, model: nn.Module, folder: str) -> DatasetEvaluators:
    here = cfg.clone()
    here.defrost()
    here.OUTPUT_DIR = folder
    heads, inner = box_head_of(model), unwrap(model)
    segmentor = getattr(inner, "sem_seg_head", None)
    built = [build_task_evaluator(name, folder, here), build_cost_evaluator(here, name, model)]
    if heads is not None:
        built.append(BoxHeadCostEvaluator(heads))
    elif isinstance(segmentor, nn.Module):
        built.append(SegmentationHeadCostEvaluator(segmentor))
    return DatasetEvaluators([each for each in built if each is not None])


class _Remembered(nn.Module):
    """A module that answers from memory until it has to forget."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.held: Any = None

    def forward(self, *args: Any) -> Any:
        if self.held is None:
            self.held = self.module(*args)
        return self.held

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


@contextlib.contextmanager
def _remembering(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Let backbone and proposals, if there are any, run once until what is yielded is called."""
    inner = unwrap(model)
    names = [
        name
        for name in ("backbone", "proposal_generator")
        if isinstance(getattr(inner, name, None), nn.Module)
    ]
    kept = {name: _Remembered(inner.get_submodule(name)) for name in names}

    def forget() -> None:
        for each in kept.values():
            each.held = None

    try:
        for name, each in kept.items():
            setattr(inner, name, each)
        yield forget
    finally:
        for name, each in kept.items():
            setattr(inner, name, each.module)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what evaluators print of themselves, once for every mode."""
    log = logging.getLogger("detectron2")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _point(results: Mapping[str, Mapping[str, Any]], how: str, threshold: float) -> MixturePoint:
    head = results.get("box_head") or results.get("sem_seg_head") or {}
    if "mflops" in results.get("cost", {}):
        gflops, experts = results["cost"]["mflops"] / 1e3, results["cost"]["mean_branches"]
        experts = experts if how else 0.0
    else:
        routing, experts = results.get("routing"), head.get("mean_experts", 0.0)
        if routing is None:
            gflops = results["cost"]["gflops"]
        else:
            gflops = routing.get("real_gflops_with_neck", routing["real_gflops"])
        gflops += head.get("gflops", 0.0)
    return MixturePoint(how, threshold, accuracy_of(results), float(gflops), float(experts))


def mixture_table(finished: MixturePoint, points: Sequence[MixturePoint]) -> str:
    """Finished model and curve as a table."""
    measures = list(finished.accuracy)
    rows = [
        (
            point.exit or "finished model",
            f"{point.threshold:g}" if point.exit else "",
            *(f"{point.accuracy.get(name, float('nan')):.2f}" for name in measures),
            f"{point.gflops:.4g}",
            f"{point.experts:.3f}",
        )
        for point in (finished, *points)
    ]
    headers = ("exit", "τ", *measures, "GFLOPs", "experts a row")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def write_curve(folder: str, finished: MixturePoint, points: Sequence[MixturePoint]) -> None:
    """Write ``curve.json``."""
    data = {"finished": asdict(finished), "points": [asdict(point) for point in points]}
    write_text_atomically(os.path.join(folder, "curve.json"), json.dumps(data, indent=2))
