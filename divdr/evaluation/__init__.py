"""Evaluators, by data set, and those of cost and routing beside them."""

from .augmented import AugmentedDetector, AugmentedSegmentor, augmented, parts_of
from .backbone_cost import BackboneCostEvaluator
from .classification_evaluator import ClassificationEvaluator, ClassifierCostEvaluator
from .evaluators import (
    build_cost_evaluator,
    build_head_cost_evaluator,
    build_mixture_evaluator,
    build_routing_evaluator,
    build_task_evaluator,
    check_evaluators,
    summary_table,
)
from .head_cost import BoxHeadCostEvaluator, SegmentationHeadCostEvaluator
from .routing_evaluator import RoutingEvaluator
from .subsets import pooled_miou, subset_recovery

__all__ = [
    "AugmentedDetector",
    "AugmentedSegmentor",
    "BackboneCostEvaluator",
    "BoxHeadCostEvaluator",
    "ClassificationEvaluator",
    "ClassifierCostEvaluator",
    "RoutingEvaluator",
    "SegmentationHeadCostEvaluator",
    "augmented",
    "build_cost_evaluator",
    "build_head_cost_evaluator",
    "build_mixture_evaluator",
    "build_routing_evaluator",
    "build_task_evaluator",
    "check_evaluators",
    "parts_of",
    "pooled_miou",
    "subset_recovery",
    "summary_table",
]
