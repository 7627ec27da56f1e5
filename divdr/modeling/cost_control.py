"""The loss of a cost target, the same on all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch import Tensor

from ..routing import (
    BatchCost,
    CostController,
    DynamicRoutingNetwork,
    Routing,
    process_count,
    several_processes,
)


def cost_target_loss(
    controller: CostController,
    network: DynamicRoutingNetwork,
    routing: Routing,
    iteration: int,
    storage: EventStorage | None,
) -> Tensor:
    """λ · (real cost above the set point, as a share of what gates decide upon).

    The controller moves on with every batch that is trained on, and in no other.

    Args:
        controller: gives λ and the set point.
        network: that made the record.
        routing: record of a batch.
        iteration: of training, from 0.
        storage: where share and multiplier are logged.

    Raises:
        ConfigError: no route of the training images costs what is asked for.
    """
    costs = torch.stack(
        [
            routing.real_cost.mean(),
            routing.real_cost.new_tensor(routing.fixed_cost),
            routing.real_cost.new_tensor(routing.full_real_cost),
        ]
    )
    # Passes without gradients (precise BatchNorm) are no training.
    trained = torch.is_grad_enabled()
    batch = BatchCost(*(_mean_over_processes(costs) if trained else costs).tolist())
    if trained:
        controller.observe(batch, iteration)
    multiplier = controller.multiplier(batch, iteration)
    if trained and storage is not None:
        span = batch.full - batch.fixed
        storage.put_scalar("train/real_share", (batch.real - batch.fixed) / span)
        storage.put_scalar("train/budget_multiplier", multiplier)
    temperature = controller.target.temperature
    cost = network.steerable_cost(routing, temperature, closing=multiplier > 0).mean()
    above = (cost - controller.set_point(batch, iteration)) / controller.span(batch)
    return multiplier * above


def _mean_over_processes(values: Tensor) -> Tensor:
    if several_processes():
        values = values.clone()
        dist.all_reduce(values)
        values /= process_count()
    return values
