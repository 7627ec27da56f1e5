"""Running a trained network fast: conditional execution, routes fixed by hand, static experts."""

from .dispatch import Dispatcher, DispatchPlan
from .plan import CurrentPlan, InferencePlan
from .route import Route, vote
from .static_network import StaticNetwork

__all__ = [
    "CurrentPlan",
    "DispatchPlan",
    "Dispatcher",
    "InferencePlan",
    "Route",
    "StaticNetwork",
    "vote",
]
