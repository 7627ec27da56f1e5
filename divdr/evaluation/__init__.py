"""Evaluators, by data set, and the routing evaluator beside them."""

from .build import build_routing_evaluator, build_task_evaluator
from .routing_evaluator import RoutingEvaluator
from .table import summary_table

__all__ = ["RoutingEvaluator", "build_routing_evaluator", "build_task_evaluator", "summary_table"]
