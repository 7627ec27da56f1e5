"""The supernet of Dynamic Routing: routing space, cells, gates, cost and network.

Axes, here and in the modules: N images of a batch, n of them at a cell, m along one of its
transforms; L layers, S scales, T = 3 transforms [up, keep, down], D = T × cells, the length of
A(x); C channels, H rows, W columns; P processes.
"""

from .batch_norm import (
    BatchNorm,
    SynchronisedBatchNorm,
    from_all_processes,
    merge_moments,
    moments,
    process_count,
    several_processes,
    tie,
)
from .cost import CellCost, CostTable, CostTensors, cost_table, count_macs
from .cost_target import BatchCost, CostController, CostTarget, budget_loss
from .gate import lasting
from .network import DEFAULT_OPS, DynamicRoutingNetwork
from .ops import build_op, op_names, register_op
from .record import Routing
from .schedule import Periods, Ramp, to_iterations
from .space import DOWN, KEEP, TRANSFORMS, UP, Node, RoutingSpace
from .transfer import HostFact, no_negative, to_device, to_host

__all__ = [
    "DEFAULT_OPS",
    "DOWN",
    "KEEP",
    "TRANSFORMS",
    "UP",
    "BatchCost",
    "BatchNorm",
    "CellCost",
    "CostController",
    "CostTable",
    "CostTarget",
    "CostTensors",
    "DynamicRoutingNetwork",
    "HostFact",
    "Node",
    "Periods",
    "Ramp",
    "Routing",
    "RoutingSpace",
    "SynchronisedBatchNorm",
    "budget_loss",
    "build_op",
    "cost_table",
    "count_macs",
    "from_all_processes",
    "lasting",
    "merge_moments",
    "moments",
    "no_negative",
    "op_names",
    "process_count",
    "register_op",
    "several_processes",
    "tie",
    "to_device",
    "to_host",
    "to_iterations",
]
