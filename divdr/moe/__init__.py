"""Mixture-of-experts classifiers and the parts that they share, in PyTorch alone.

Parts: networks (``resnet``, ``named``, ``pwlu``), cut in two by ``split``; gates, ``choice`` of
experts and early exit, dispatch, ``teaching`` and ``soft_targets``, partitions of classes and of
samples, balanced assignment. What systems promise stands in ``system``; they are one network, a
plain ensemble, ``Hydra``, ``Collaboration``, ``SingleGate`` and ``PerExample``.
"""

from ..settings import CollaborationSettings, HydraSettings, TeachingSettings
from .balance import Balance, BalanceLosses, kth_excluding, load_probabilities, squared_variation
from .choice import (
    Choice,
    above,
    anytime,
    best,
    check_selection,
    choose_by,
    confidence,
    confident,
    delegated,
    one_hot_choice,
    top_k,
)
from .choice_blocks import BlockParts, ChoiceBlock, ChoiceCell, RoutedCells
from .class_partition import (
    cluster_partition,
    given_partition,
    greedy_partition,
    load_partition,
    random_partition,
    save_partition,
)
from .collaboration import Collaboration, Delegation, Delegator
from .embedding import (
    Embedder,
    LibraryEmbedder,
    PixelEmbedder,
    check_labels,
    class_means,
    class_sums,
    common_divisors,
    gather_rows,
    process_count,
)
from .expert_dispatch import (
    Dispatch,
    Group,
    overwrite,
    restrict,
    run_all,
    run_groups,
    scatter_sum,
)
from .expert_files import base_hash, take_expert
from .expert_ops import SqueezeExcite, build_expert, expert_names, group_norm
from .gates import Gating, NoisyTopKGate, PooledGate, anneal_k
from .hydra import Hydra, NeededGroups, check_gating, chosen_branches, own_loss
from .interpolation import (
    CurvePoint,
    LinePoint,
    at_thresholds,
    between,
    loss_between,
    threshold_curve,
)
from .multiply_adds import call_macs, each_macs, part_macs, without_data
from .named import (
    NamedInput,
    NamedStem,
    is_named,
    last_linear,
    named_classifier,
    named_input,
    named_stem,
    without_last_linear,
)
from .op_gate import OpGate, OpGates
from .per_example import Body, BodyCost, Decision, PerExample, RoutedLayers, number_decisions
from .per_example_models import per_example_network
from .pwlu import PWLU, CondConv2d, align, with_condconv, with_pwlu
from .resnet import DenseNetParts, Part, ResNetParts
from .routing_layer import Context, Router, RoutingLayer
from .sample_gate import Reservoir, SampleGate, as_first_process, smoothed, weighted_mean
from .single import Ensemble, Stacking, StageClassifier, log_mean_probability
from .single_gate import Comparison, SingleGate
from .single_gate_stages import stages_of
from .soft_targets import Distillation, divergence
from .split import split_at, take_common_weights, with_embedding
from .system import (
    ClassificationSystem,
    Cost,
    ExitThreshold,
    Prediction,
    Stage,
    Staged,
    Thresholds,
    check_probability,
    loaded_numbers,
    num_parameters,
    stage_at,
)
from .teaching import DelegatorFirst, Lesson, common_lesson, teach, true_class_probability
from .transport import balanced_capacities, vogel_assignment

__all__ = [
    "PWLU",
    "Balance",
    "BalanceLosses",
    "BlockParts",
    "Body",
    "BodyCost",
    "Choice",
    "ChoiceBlock",
    "ChoiceCell",
    "ClassificationSystem",
    "Collaboration",
    "CollaborationSettings",
    "Comparison",
    "CondConv2d",
    "Context",
    "Cost",
    "CurvePoint",
    "Decision",
    "Delegation",
    "Delegator",
    "DelegatorFirst",
    "DenseNetParts",
    "Dispatch",
    "Distillation",
    "Embedder",
    "Ensemble",
    "ExitThreshold",
    "Gating",
    "Group",
    "Hydra",
    "HydraSettings",
    "Lesson",
    "LibraryEmbedder",
    "LinePoint",
    "NamedInput",
    "NamedStem",
    "NeededGroups",
    "NoisyTopKGate",
    "OpGate",
    "OpGates",
    "Part",
    "PerExample",
    "PixelEmbedder",
    "PooledGate",
    "Prediction",
    "ResNetParts",
    "Reservoir",
    "RoutedCells",
    "RoutedLayers",
    "Router",
    "RoutingLayer",
    "SampleGate",
    "SingleGate",
    "SqueezeExcite",
    "Stacking",
    "Stage",
    "StageClassifier",
    "Staged",
    "TeachingSettings",
    "Thresholds",
    "above",
    "align",
    "anneal_k",
    "anytime",
    "as_first_process",
    "at_thresholds",
    "balanced_capacities",
    "base_hash",
    "best",
    "between",
    "build_expert",
    "call_macs",
    "check_gating",
    "check_labels",
    "check_probability",
    "check_selection",
    "choose_by",
    "chosen_branches",
    "class_means",
    "class_sums",
    "cluster_partition",
    "common_divisors",
    "common_lesson",
    "confidence",
    "confident",
    "delegated",
    "divergence",
    "each_macs",
    "expert_names",
    "gather_rows",
    "given_partition",
    "greedy_partition",
    "group_norm",
    "is_named",
    "kth_excluding",
    "last_linear",
    "load_partition",
    "load_probabilities",
    "loaded_numbers",
    "log_mean_probability",
    "loss_between",
    "named_classifier",
    "named_input",
    "named_stem",
    "num_parameters",
    "number_decisions",
    "one_hot_choice",
    "overwrite",
    "own_loss",
    "part_macs",
    "per_example_network",
    "process_count",
    "random_partition",
    "restrict",
    "run_all",
    "run_groups",
    "save_partition",
    "scatter_sum",
    "smoothed",
    "split_at",
    "squared_variation",
    "stage_at",
    "stages_of",
    "take_common_weights",
    "take_expert",
    "teach",
    "threshold_curve",
    "top_k",
    "true_class_probability",
    "vogel_assignment",
    "weighted_mean",
    "with_condconv",
    "with_embedding",
    "with_pwlu",
    "without_data",
    "without_last_linear",
]
