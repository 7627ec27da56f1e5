"""Detectron2 glue: registered backbone and heads, and routing losses for any model."""

from .attach import (
    ClusteringLossSettings,
    RoutingSupervision,
    attach_routing,
    attach_routing_from_config,
    attached_routing,
)
from .backbone import DynamicRouting, find_backbone
from .decoder import DynamicRoutingDecoder

__all__ = [
    "ClusteringLossSettings",
    "DynamicRouting",
    "DynamicRoutingDecoder",
    "RoutingSupervision",
    "attach_routing",
    "attach_routing_from_config",
    "attached_routing",
    "find_backbone",
]
