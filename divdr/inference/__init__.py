"""Running a trained network fast: conditional execution, routes fixed by hand, static experts.

Axes, here and in the modules: N images of a batch, n of them at a cell, m along one of its
transforms; L layers, S scales, T = 3 transforms [up, keep, down], D = T × cells, the length of
A(x); K experts; C channels, H rows, W columns.
"""

from .captured import CapturedCall, CapturedRoute
from .current_plan import CurrentPlan
from .dispatch import Dispatcher, DispatchPlan, check_dispatched
from .plan import InferencePlan
from .route import Route, read_route, vote
from .specialised import SpecialisedPlan
from .static_network import StaticNetwork

__all__ = [
    "CapturedCall",
    "CapturedRoute",
    "CurrentPlan",
    "DispatchPlan",
    "Dispatcher",
    "InferencePlan",
    "Route",
    "SpecialisedPlan",
    "StaticNetwork",
    "check_dispatched",
    "read_route",
    "vote",
]
