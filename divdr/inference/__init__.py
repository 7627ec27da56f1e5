"""Running a trained network fast: the conditional executor and routes fixed by hand."""

from .current import CurrentPlan
from .plan import InferencePlan
from .route import Route

__all__ = ["CurrentPlan", "InferencePlan", "Route"]
