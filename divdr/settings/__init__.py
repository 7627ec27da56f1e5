"""Every setting of divdr, once: default, unit, range, meaning and source.

Each group is a frozen dataclass that checks itself. The keys of a configuration are made from them
(``divdr.config``), and ``python -m divdr.settings`` prints ``docs/settings.md``:

    RoutingSettings.of(cfg.MODEL.ROUTING).budget.weight
"""

from .field import Entry, Range, Settings, entries, walk
from .mixtures import (
    BoxCollaborationSettings,
    BoxHydraSettings,
    ClassifierSettings,
    CollaborationSettings,
    GatingSettings,
    HydraSettings,
    TeachingSettings,
)
from .routed import (
    MultiTaskSettings,
    NarrowBackboneSettings,
    PerExampleSettings,
    RoutedResNetSettings,
)
from .routing import (
    BudgetSettings,
    ClusteringSettings,
    DistillationSettings,
    ExplorationSettings,
    KMeansSettings,
    OpGateSettings,
    RoutingSettings,
)
from .segmentation import SegmentationLossSettings, SlidingWindowSettings
from .single_gated import (
    BoxSingleGateSettings,
    HeadMixtureSettings,
    MixtureSettings,
    SegmentationSingleGateSettings,
    SingleGateSettings,
)
from .training import (
    AverageSettings,
    ClassificationInputSettings,
    DatasetSettings,
    InputSettings,
    LoaderSettings,
    OptimizerSettings,
    PrecisionSettings,
    SolverSettings,
    WandbSettings,
)
from .translation import (
    BeamSearchSettings,
    TransformerSettings,
    TranslationExpertSettings,
    TranslationSettings,
    TranslationTrainingSettings,
)

GROUPS: tuple[type[Settings], ...] = (
    RoutingSettings,
    RoutedResNetSettings,
    NarrowBackboneSettings,
    MultiTaskSettings,
    SolverSettings,
    WandbSettings,
    OptimizerSettings,
    DatasetSettings,
    LoaderSettings,
    InputSettings,
    ClassifierSettings,
    BoxHydraSettings,
    BoxCollaborationSettings,
    BoxSingleGateSettings,
    SegmentationSingleGateSettings,
    SegmentationLossSettings,
    SlidingWindowSettings,
)
"""All settings with keys in a configuration; further groups are within these."""

OUTSIDE: tuple[type[Settings], ...] = (TranslationSettings,)
"""Those of what runs outside Detectron2: they have no keys, and a program's options instead."""

__all__ = [
    "GROUPS",
    "OUTSIDE",
    "AverageSettings",
    "BeamSearchSettings",
    "BoxCollaborationSettings",
    "BoxHydraSettings",
    "BoxSingleGateSettings",
    "BudgetSettings",
    "ClassificationInputSettings",
    "ClassifierSettings",
    "ClusteringSettings",
    "CollaborationSettings",
    "DatasetSettings",
    "DistillationSettings",
    "Entry",
    "ExplorationSettings",
    "GatingSettings",
    "HeadMixtureSettings",
    "HydraSettings",
    "InputSettings",
    "KMeansSettings",
    "LoaderSettings",
    "MixtureSettings",
    "MultiTaskSettings",
    "NarrowBackboneSettings",
    "OpGateSettings",
    "OptimizerSettings",
    "PerExampleSettings",
    "PrecisionSettings",
    "Range",
    "RoutedResNetSettings",
    "RoutingSettings",
    "SegmentationLossSettings",
    "SegmentationSingleGateSettings",
    "Settings",
    "SingleGateSettings",
    "SlidingWindowSettings",
    "SolverSettings",
    "TeachingSettings",
    "TransformerSettings",
    "TranslationExpertSettings",
    "TranslationSettings",
    "TranslationTrainingSettings",
    "WandbSettings",
    "entries",
    "walk",
]
