"""Mixture-of-experts classifiers and the parts that they share, in PyTorch alone.

Parts: stems and branches (``resnet``, ``densenet``, ``named``), gates, class partitions, embedders,
balanced assignment, dispatch by groups, CondConv and PWLU. Systems
(``single.ClassificationSystem``): one network, a plain ensemble, ``Hydra``, ``Collaboration``,
``PerExample`` routing.
"""

from .balance import Balance, BalanceLosses, kth_excluding, load_probabilities, squared_variation
from .choice_blocks import BlockParts, ChoiceBlock, ChoiceCell, RoutedCells
from .class_partition import (
    cluster_partition,
    given_partition,
    greedy_partition,
    load_partition,
    random_partition,
    save_partition,
)
from .collaboration import Collaboration, CollaborationSettings, Delegation, Delegator
from .embedding import (
    Embedder,
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
    Gater,
    Group,
    check_selection,
    one_hot_choice,
    restrict,
    run_all,
    run_groups,
    scatter_sum,
    select,
)
from .expert_ops import SqueezeExcite, build_expert, expert_names, group_norm
from .hydra import Hydra, HydraSettings
from .interpolation import CurvePoint, LinePoint, between, loss_between, threshold_curve
from .named import (
    NamedStem,
    is_named,
    last_linear,
    named_classifier,
    named_stem,
    without_last_linear,
)
from .noisy_top_k import Gating, NoisyTopKGate, anneal_k
from .op_gate import OpGate, OpGates
from .per_example import Body, BodyCost, Decision, PerExample, RoutedLayers, number_decisions
from .per_example_models import per_example_network
from .pwlu import PWLU, CondConv2d, align, with_condconv, with_pwlu
from .resnet import DenseNetParts, Part, ResNetParts
from .routing_layer import Context, Router, RoutingLayer
from .single import (
    ClassificationSystem,
    Cost,
    Ensemble,
    Prediction,
    Progress,
    StageClassifier,
    num_parameters,
    part_macs,
)
from .teaching import Distillation, Lesson, TeachingSettings, teach, true_class_probability
from .transport import balanced_capacities, exchange, vogel_assignment

__all__ = [
    "PWLU",
    "Balance",
    "BalanceLosses",
    "BlockParts",
    "Body",
    "BodyCost",
    "ChoiceBlock",
    "ChoiceCell",
    "ClassificationSystem",
    "Collaboration",
    "CollaborationSettings",
    "CondConv2d",
    "Context",
    "Cost",
    "CurvePoint",
    "Decision",
    "Delegation",
    "Delegator",
    "DenseNetParts",
    "Dispatch",
    "Distillation",
    "Embedder",
    "Ensemble",
    "Gater",
    "Gating",
    "Group",
    "Hydra",
    "HydraSettings",
    "Lesson",
    "LinePoint",
    "NamedStem",
    "NoisyTopKGate",
    "OpGate",
    "OpGates",
    "Part",
    "PerExample",
    "PixelEmbedder",
    "Prediction",
    "Progress",
    "ResNetParts",
    "RoutedCells",
    "RoutedLayers",
    "Router",
    "RoutingLayer",
    "SqueezeExcite",
    "StageClassifier",
    "TeachingSettings",
    "align",
    "anneal_k",
    "balanced_capacities",
    "between",
    "build_expert",
    "check_labels",
    "check_selection",
    "class_means",
    "class_sums",
    "cluster_partition",
    "common_divisors",
    "exchange",
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
    "loss_between",
    "named_classifier",
    "named_stem",
    "num_parameters",
    "number_decisions",
    "one_hot_choice",
    "part_macs",
    "per_example_network",
    "process_count",
    "random_partition",
    "restrict",
    "run_all",
    "run_groups",
    "save_partition",
    "scatter_sum",
    "select",
    "squared_variation",
    "teach",
    "threshold_curve",
    "true_class_probability",
    "vogel_assignment",
    "with_condconv",
    "with_pwlu",
    "without_last_linear",
]
