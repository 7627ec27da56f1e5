"""Evaluators of a data set, by what its metadata says that it is, and a table of results."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
)
from detectron2.modeling import Backbone
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..errors import ConfigError
from ..modeling import attached_experts, attached_routing, has_routed_backbone, unwrap
from ..modeling.classifiers import ImageClassifier
from ..modeling.roi_heads import box_head_of, hydra_box_head_of
from ..modeling.segmentors import segmentation_mixture_of
from ..moe import SingleGate
from .backbone_cost import BackboneCostEvaluator
from .checked_evaluators import CheckedSemSegEvaluator, NumberedCOCOEvaluator, QuietEvaluators
from .classification_evaluator import ClassificationEvaluator, ClassifierCostEvaluator
from .expert_cost_evaluator import ExpertCostEvaluator
from .head_cost import BoxHeadCostEvaluator, SegmentationHeadCostEvaluator
from .mixture_evaluator import MixtureEvaluator
from .routing_evaluator import RoutingEvaluator, check_sizes

logger = logging.getLogger(__name__)


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


def build_cost_evaluator(
    cfg: CfgNode, dataset_name: str, model: nn.Module
) -> DatasetEvaluator | None:
    """The evaluator of cost: routing for a model with routing attached, what ran for one whose
    backbone chooses experts, the backbone's GFLOPs for another one with a backbone, what ran for an
    image classifier, else None, as for a routed backbone without routing attached.
    """
    sizes = check_sizes(cfg.MODEL.ROUTING.COST_SIZES)
    if attached_routing(model) is not None:
        return build_routing_evaluator(cfg, dataset_name, model)
    inner = unwrap(model)
    if isinstance(inner, ImageClassifier):
        return ClassifierCostEvaluator(
            sum(p.numel() for p in inner.parameters()),
            ends_early=getattr(inner.system, "ends_early", False),
        )
    experts = attached_experts(model)
    if experts is not None:
        return ExpertCostEvaluator(inner.backbone, experts, sizes)
    backbone = getattr(inner, "backbone", None)
    if not isinstance(backbone, Backbone):
        return None
    if has_routed_backbone(backbone):
        logger.warning(
            "What images cost is not reported: the model has a routed backbone without "
            "divdr.attach_routing_from_config, which keeps the record of its routes"
        )
        return None
    return BackboneCostEvaluator(backbone, sizes)


def build_mixture_evaluator(cfg: CfgNode, model: nn.Module) -> MixtureEvaluator | None:
    """The evaluator of a single-gated classifier's alternatives, if its settings ask for it."""
    inner = unwrap(model)
    if not isinstance(inner, ImageClassifier) or not isinstance(inner.system, SingleGate):
        return None
    if not inner.system.settings.compare:
        return None
    return MixtureEvaluator(inner, os.path.join(cfg.OUTPUT_DIR, "inference"))


def build_head_cost_evaluator(dataset_name: str, model: nn.Module) -> DatasetEvaluator | None:
    """The evaluator of a detector's single box head, or of a mixture as segmentation head; else
    None.

    Raises:
        CheckpointError: the head's class partition is of another data set.
    """
    segmentor = segmentation_mixture_of(model)
    if segmentor is not None:
        return SegmentationHeadCostEvaluator(segmentor)
    heads = box_head_of(model)
    if heads is None:
        return None
    hydra = hydra_box_head_of(model)
    classes = MetadataCatalog.get(dataset_name).get("thing_classes")
    if hydra is not None and classes is not None:
        hydra.classes.check(classes)
    return BoxHeadCostEvaluator(heads)


def check_evaluators(dataset_names: Sequence[str]) -> None:
    """See that data sets can be evaluated in the processes of this run, before it trains for hours.

    Cityscapes' own evaluations gather their files in a folder of one machine.

    Raises:
        ConfigError: a data set of Cityscapes' instances, and the processes are on several machines.
    """
    if _on_one_machine():
        return
    for name in dataset_names:
        kind = MetadataCatalog.get(name).get("evaluator_type")
        if kind in ("cityscapes_instance", "cityscapes_panoptic_seg"):
            raise ConfigError(
                f"the instances of data set {name!r} can be evaluated on one machine alone: train "
                "on several with DATASETS.TEST () and evaluate on one with --eval-only"
            )


def _on_one_machine() -> bool:
    if comm.get_world_size() == 1:
        return True
    try:
        return comm.get_local_size() == comm.get_world_size()
    except AssertionError:  # Detectron2 does not know which processes share a machine
        return False


def build_task_evaluator(
    dataset_name: str, folder: str, cfg: CfgNode | None = None
) -> DatasetEvaluators:
    """What Detectron2 evaluates a data set with; what its libraries print goes to the log file.

    Processes on several machines evaluate Cityscapes' classes with ``SemSegEvaluator``, since
    ``CityscapesSemSegEvaluator`` works on one alone. IoU of a class is the same; their mean
    ("mIoU", the other's "IoU") leaves out classes that no label has, where Cityscapes counts 0 if
    one is predicted; iIoU and categories are missing.

    Args:
        dataset_name: name in the catalog.
        folder: takes predictions that are kept.
        cfg: a config; which figures make sense depends on the model.

    Raises:
        ConfigError: the data set's kind of evaluation is unknown, or see :func:`check_evaluators`.
    """
    check_evaluators([dataset_name])
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind == "cityscapes_sem_seg":
        if not _on_one_machine():
            return QuietEvaluators([CheckedSemSegEvaluator(dataset_name, folder)])
        return QuietEvaluators([CityscapesSemSegEvaluator(dataset_name)])
    if kind == "cityscapes_instance":
        return QuietEvaluators([CityscapesInstanceEvaluator(dataset_name)])
    if kind == "classification":
        classes = MetadataCatalog.get(dataset_name).classes
        return QuietEvaluators([ClassificationEvaluator(classes)])
    found: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg") and _has_semantic_labels(dataset_name):
        found.append(CheckedSemSegEvaluator(dataset_name, folder))
    if kind in ("coco", "coco_panoptic_seg"):
        found.extend(_instance_evaluators(dataset_name, folder, cfg))
    if kind in ("coco_panoptic_seg", "cityscapes_panoptic_seg"):
        found.append(COCOPanopticEvaluator(dataset_name, folder))
    if kind == "cityscapes_panoptic_seg":
        found.append(CityscapesSemSegEvaluator(dataset_name))
        found.append(CityscapesInstanceEvaluator(dataset_name))
    if not found:
        raise ConfigError(
            f"data set {dataset_name!r} has evaluator_type {kind!r}, which is not supported"
        )
    return QuietEvaluators(found)


def _has_semantic_labels(dataset_name: str) -> bool:
    return MetadataCatalog.get(dataset_name).get("sem_seg_root") is not None


def _instance_evaluators(
    dataset_name: str, folder: str, cfg: CfgNode | None
) -> list[DatasetEvaluator]:
    metadata = MetadataCatalog.get(dataset_name)
    name = dataset_name
    if metadata.evaluator_type == "coco_panoptic_seg" and not _has_semantic_labels(name):
        # The panoptic-only names count stuff among the classes of their metadata; instances are
        # evaluated by the names that list things alone.
        name = name.removesuffix("_panoptic")
        if name == dataset_name or name not in DatasetCatalog.list():
            return []
    options: dict[str, Any] = {}
    if cfg is not None and len(cfg.TEST.KEYPOINT_OKS_SIGMAS):
        options["kpt_oks_sigmas"] = cfg.TEST.KEYPOINT_OKS_SIGMAS
    return [NumberedCOCOEvaluator(name, output_dir=folder, **options)]


def summary_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a main figure: data set, task, name, value; few enough for a screen.

    Figures of a single class or layer, whose names Detectron2 and divdr write as "AP-cat", are left
    to ``results.json`` and the log. Images per expert are one row.

    Args:
        results: {data set: {task: {name: number}}}.
    """
    rows: list[tuple[str, str, str, str]] = []
    for dataset, tasks in results.items():
        for task, figures in tasks.items():
            if isinstance(figures, Mapping):
                rows += [(dataset, task, *row) for row in _main_figures(figures)]
    headers = ("data set", "task", "figure", "value")
    return tabulate(rows, headers, disable_numparse=True, colalign=(*["left"] * 3, "right"))


_PER_EXPERT = "images_expert_"


def _main_figures(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values in words, in the order of the figures."""
    rows = [
        (name, f"{value:.4f}" if isinstance(value, float) else str(value))
        for name, value in figures.items()
        if "-" not in name and not name.startswith(_PER_EXPERT)
    ]
    sizes = [f"{value:g}" for name, value in figures.items() if name.startswith(_PER_EXPERT)]
    return [*rows, ("images per expert", ", ".join(sizes))] if sizes else rows
