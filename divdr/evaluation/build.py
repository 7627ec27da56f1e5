"""Evaluators of a data set, by what its metadata says that it is."""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from PIL import Image
from torch import nn

from ..errors import ConfigError
from .routing_evaluator import RoutingEvaluator, check_sizes


def build_routing_evaluator(cfg: CfgNode, dataset_name: str, model: nn.Module) -> RoutingEvaluator:
    """The routing evaluator as the config sets it up, for a model with routing attached."""
    return RoutingEvaluator(
        dataset_name,
        model,
        output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"),
        sizes=check_sizes(cfg.MODEL.ROUTING.COST_SIZES),
        num_experts=cfg.MODEL.ROUTING.CLUSTERING.NUM_EXPERTS,
        seed=max(0, cfg.SEED),
    )


def build_task_evaluator(dataset_name: str, folder: str) -> DatasetEvaluators:
    """What Detectron2 evaluates a data set with; ``folder`` takes predictions it keeps.

    Raises:
        ConfigError: the data set's kind of evaluation is unknown.
    """
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind == "cityscapes_sem_seg":
        return DatasetEvaluators([CityscapesSemSegEvaluator(dataset_name)])
    if kind == "cityscapes_instance":
        return DatasetEvaluators([CityscapesInstanceEvaluator(dataset_name)])
    found: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg"):
        found.append(_semantic_evaluator(dataset_name, folder))
    if kind in ("coco", "coco_panoptic_seg"):
        found.append(COCOEvaluator(dataset_name, output_dir=folder))
    if kind == "coco_panoptic_seg":
        found.append(COCOPanopticEvaluator(dataset_name, folder))
    if not found:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator_type {kind!r}, which is not supported"
        )
    return DatasetEvaluators(found)


def _semantic_evaluator(dataset_name: str, folder: str) -> SemSegEvaluator:
    options: dict[str, Any] = {}
    # Detectron2's own loading function asks NumPy for no copy, which NumPy 2 cannot promise;
    # Detectron2 0.6 reads labels in a way that works and has no such argument.
    if "sem_seg_loading_fn" in inspect.signature(SemSegEvaluator.__init__).parameters:
        options["sem_seg_loading_fn"] = _read_labels
    return SemSegEvaluator(dataset_name, distributed=True, output_dir=folder, **options)


def _read_labels(path: str, dtype: Any = None, **ignored: Any) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=dtype)
