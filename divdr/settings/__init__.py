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
from .routing import BudgetSettings, ClusteringSettings, KMeansSettings, RoutingSettings
from .training import (
    ClassificationInputSettings,
    InputSettings,
    LoaderSettings,
    OptimizerSettings,
    PrecisionSettings,
    SolverSettings,
)

GROUPS: tuple[type[Settings], ...] = (
    RoutingSettings,
    SolverSettings,
    OptimizerSettings,
    LoaderSettings,
    InputSettings,
    ClassifierSettings,
    BoxHydraSettings,
    BoxCollaborationSettings,
)
"""All settings; further groups are within these."""

__all__ = [
    "GROUPS",
    "BoxCollaborationSettings",
    "BoxHydraSettings",
    "BudgetSettings",
    "ClassificationInputSettings",
    "ClassifierSettings",
    "ClusteringSettings",
    "CollaborationSettings",
    "Entry",
    "GatingSettings",
    "HydraSettings",
    "InputSettings",
    "KMeansSettings",
    "LoaderSettings",
    "OptimizerSettings",
    "PrecisionSettings",
    "Range",
    "RoutingSettings",
    "Settings",
    "SolverSettings",
    "TeachingSettings",
    "entries",
    "walk",
]
