"""Mixture-of-experts classifiers and the parts that they share, in PyTorch alone.

Parts: stems and branches (``resnet``, ``densenet``, ``named``), gates, class partitions, embedders,
balanced assignment, dispatch by groups, CondConv and PWLU. Systems
(``prediction.ClassificationSystem``): one network, a plain ensemble, ``Hydra``, ``Collaboration``.
"""

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
from .pwlu import PWLU, CondConv2d, align, with_condconv, with_pwlu
from .resnet import DenseNetParts, Part, ResNetParts
from .single import (
    ClassificationSystem,
    Cost,
    Ensemble,
    Prediction,
    StageClassifier,
    num_parameters,
    part_macs,
)
from .teaching import Distillation, Lesson, TeachingSettings, teach, true_class_probability
from .transport import balanced_capacities, exchange, vogel_assignment

__all__ = [
    "PWLU",
    "ClassificationSystem",
    "Collaboration",
    "CollaborationSettings",
    "CondConv2d",
    "Cost",
    "CurvePoint",
    "Delegation",
    "Delegator",
    "DenseNetParts",
    "Dispatch",
    "Distillation",
    "Embedder",
    "Ensemble",
    "Gater",
    "Group",
    "Hydra",
    "HydraSettings",
    "Lesson",
    "LinePoint",
    "NamedStem",
    "Part",
    "PixelEmbedder",
    "Prediction",
    "ResNetParts",
    "StageClassifier",
    "TeachingSettings",
    "align",
    "balanced_capacities",
    "between",
    "check_labels",
    "check_selection",
    "class_means",
    "class_sums",
    "cluster_partition",
    "common_divisors",
    "exchange",
    "gather_rows",
    "given_partition",
    "greedy_partition",
    "is_named",
    "last_linear",
    "load_partition",
    "loss_between",
    "named_classifier",
    "named_stem",
    "num_parameters",
    "one_hot_choice",
    "part_macs",
    "process_count",
    "random_partition",
    "restrict",
    "run_all",
    "run_groups",
    "save_partition",
    "scatter_sum",
    "select",
    "teach",
    "threshold_curve",
    "true_class_probability",
    "vogel_assignment",
    "with_condconv",
    "with_pwlu",
    "without_last_linear",
]
